"""Studies under Ray Tune and Ray Train, on this machine or a cluster. The only home of Ray."""

from css_ray.execution.token import use_token

use_token()  # before Ray is imported, which asks for the mode of its authentication once
