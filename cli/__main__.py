"""`python -m css_ray_cli`: the command `css-ray` where only the packages are there, as on a cluster that they were sent to."""

import sys

try:
    from .main import main

    main()
except ModuleNotFoundError as error:
    sys.exit(
        f"{sys.executable} has no {error.name}; start Ray in the environment where what css-ray depends on is installed "
        "(activate it before `ray start`, so that `python` is its own)"
    )
