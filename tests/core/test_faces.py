"""The face of a folder is a list of what it offers, from which classes are looked up by kind."""

from __future__ import annotations

import types

from scoresde.core.faces import own


def test_own_classes():
    """Those in __all__ alone, of a kind, without the base itself: neither functions, nor instances, nor what is not offered."""

    class Base: ...

    class A(Base): ...

    class B(A): ...

    class Other: ...

    class Hidden(Base): ...

    face = types.ModuleType("face")
    vars(face).update(Base=Base, A=A, B=B, Other=Other, Hidden=Hidden, make=lambda: A(), one=A(), __all__=["Base", "A", "B", "Other", "make", "one"])
    assert own(face, Base) == {"A": A, "B": B}
    assert own(face, A) == {"B": B}
    assert own(face, Other) == {}


def test_own_classes_of_the_package():
    import scoresde as sd
    from scoresde import sdes, solvers

    assert {"VPSDE", "RectifiedFlow"} <= set(own(sdes, sd.SDE))
    found = own(solvers, sd.Solver)
    assert found["Heun"] is sd.Heun
    assert "Solver" not in found
    assert all(issubclass(cls, sd.Solver) for cls in found.values())
