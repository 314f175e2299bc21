"""What knows nothing of diffusion: tensors and time, checks, noise, files, processes.

Import the module that you need: ``from scoresde.core.checks import check_data``.
"""

__all__: list[str] = []
