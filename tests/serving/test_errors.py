import grpc
import pytest
import tensorflow as tf

from serving.errors import Code, ServingError, translate


@pytest.mark.parametrize("code", Code)
def test_codes_are_grpcs(code):
    assert code.value.grpc.value[0] == code.value.number
    assert code.name == code.value.grpc.name


def test_there_is_a_code_for_each_of_grpcs():
    assert {code.value.grpc for code in Code} == set(grpc.StatusCode) - {grpc.StatusCode.OK}


def test_tensorflows_errors_keep_their_code():
    failure = translate(tf.errors.UnavailableError(None, None, "queue full"))
    assert failure == ServingError(Code.UNAVAILABLE, "queue full")


def test_an_operations_stack_is_not_told():
    message = "Graph execution error:\n\nDetected at node Cast\nbad cast\n\t [[{{node Cast}}]]"
    failure = translate(tf.errors.InvalidArgumentError(None, None, message))
    assert failure == ServingError(Code.INVALID_ARGUMENT, "bad cast")


@pytest.mark.parametrize("code", Code)
def test_a_code_is_found_by_its_number(code):
    assert Code(code.value.number) is code


def test_an_unknown_number_is_unknown():
    assert Code(99) is Code.UNKNOWN


def test_anything_else_is_internal():
    assert translate(KeyError("x")) == ServingError(Code.INTERNAL, "KeyError: 'x'")
