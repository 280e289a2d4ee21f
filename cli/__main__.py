"""`python -m css_ray_cli`: the command `css-ray` where only the packages exist, as on a cluster to which they were sent."""

import sys

try:
    from .main import main

    main()
except ModuleNotFoundError as error:
    sys.exit(
        f"{sys.executable} has no {error.name}; start Ray in an environment that has the dependencies of css-ray "
        "(activate it before `ray start`, so that `python` is the one of that environment)"
    )
