"""The trained study of the tests of predictions, whose models the figures show."""

from tests.prediction.conftest import here as here
from tests.prediction.conftest import trained as trained
