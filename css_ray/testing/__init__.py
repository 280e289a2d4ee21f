"""What tests of methods need: the contract that every method keeps, and a method and batches small enough to train in a test.

A method's test class names the method and inherits the tests; pytest runs them:

    from css_ray.testing import MethodContract
    from entropy_methods import EntropyMinimisation


    class TestEntropyMinimisation(MethodContract):
        method_class = EntropyMinimisation
"""

from css_ray.testing.contract import (
    MODEL,
    NUM_CLASSES,
    SIZE,
    LabelsInMemory,
    MethodContract,
    batch_of,
    clock_at,
    enter_stages,
    make_batch,
    make_method,
    train,
)

__all__ = [
    "MODEL",
    "NUM_CLASSES",
    "SIZE",
    "LabelsInMemory",
    "MethodContract",
    "batch_of",
    "clock_at",
    "enter_stages",
    "make_batch",
    "make_method",
    "train",
]
