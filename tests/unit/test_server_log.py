"""Reading server logs: excerpts of what tritonserver 2.51.0 wrote about broken copies of this model repository.

The excerpts are cut (fewer lines, fewer frames of tracebacks), and paths are shortened; nothing else is changed.
`SOME_SOCKET` alone is made up: `QUOTED` with another error.
"""
# ruff: noqa: E501

import pytest

from lab_utils import server_log

HEAD = """\
I1123 07:44:59.353597 17999 pinned_memory_manager.cc:283] "Pinned memory pool disabled"
E1123 07:44:59.353985 17999 server.cc:241] "CudaDriverHelper has not been initialized."
I1123 07:44:59.356923 17999 model_lifecycle.cc:472] "loading: postprocess:1"
"""

GOOD = (
    HEAD
    + """\
I1123 07:44:59.664761 17999 model_lifecycle.cc:839] "successfully loaded 'postprocess'"
I1123 07:44:59.667300 17999 python_be.cc:2249] "TRITONBACKEND_ModelInstanceInitialize: inference_0_0 (CPU device 0)"
I1123 07:44:59.934469 17999 model_lifecycle.cc:839] "successfully loaded 'preprocess'"
I1123 07:44:59.985370 17999 model_lifecycle.cc:839] "successfully loaded 'inference'"
E1123 07:44:59.985761 17999 ensemble_scheduler.cc:1468] "unable to create stream for ensemble_latest: CUDA driver version is insufficient for CUDA runtime version"
I1123 07:44:59.985799 17999 model_lifecycle.cc:839] "successfully loaded 'ensemble_latest'"
I1123 07:44:59.985914 17999 server.cc:604]
+------------------+------+
| Repository Agent | Path |
+------------------+------+
+------------------+------+

Error: Failed to initialize NVML
W1123 07:44:59.986736 17999 metrics.cc:798] "DCGM unable to start: DCGM initialization error"
I1123 07:44:59.986824 17999 metrics.cc:770] "Collecting CPU metrics"
I1123 07:44:59.988260 17999 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:34313"
I1123 07:44:59.988483 17999 http_server.cc:4713] "Started HTTPService at 127.0.0.1:52661"
I1123 07:44:59.998940 17999 http_server.cc:362] "Started Metrics Service at 127.0.0.1:49933"
"""
)

SYNTAX = (
    HEAD
    + """\
E1123 07:45:12.879746 19139 backend_model.cc:692] "ERROR: Failed to create instance: SyntaxError: invalid syntax (model.py, line 1)"
E1123 07:45:12.879843 19139 model_lifecycle.cc:642] "failed to load 'postprocess' version 1: Internal: SyntaxError: invalid syntax (model.py, line 1)"
I1123 07:45:12.879856 19139 model_lifecycle.cc:777] "failed to load 'postprocess'"
E1123 07:45:13.021475 19139 model_repository_manager.cc:703] "Invalid argument: ensemble 'ensemble_latest' depends on 'postprocess' which has no loaded version. Model 'postprocess' loading failed with error: version 1 is at UNAVAILABLE state: Internal: SyntaxError: invalid syntax (model.py, line 1);"
error: creating server: Invalid argument - load failed for model 'ensemble_latest': ensemble 'ensemble_latest' depends on 'postprocess' which has no loaded version. Model 'postprocess' loading failed with error: version 1 is at UNAVAILABLE state: Internal: SyntaxError: invalid syntax (model.py, line 1);
"""
)

IMPORT = (
    HEAD
    + r"""
E1123 07:45:02.489607 18317 model_lifecycle.cc:642] "failed to load 'preprocess' version 1: Internal: ModuleNotFoundError: No module named 'nosuchmodule'\n\nAt:\n  /models/preprocess/1/model.py(1): <module>\n  <frozen importlib._bootstrap>(1360): _find_and_load\n"
E1123 07:45:02.524260 18317 model_repository_manager.cc:703] "Invalid argument: ensemble 'ensemble_latest' depends on 'preprocess' which has no loaded version. Model 'preprocess' loading failed with error: version 1 is at UNAVAILABLE state: Internal: ModuleNotFoundError: No module named 'nosuchmodule'\n\nAt:\n  /models/preprocess/1/model.py(1): <module>\n;"
error: creating server: Invalid argument - load failed for model 'ensemble_latest': ensemble 'ensemble_latest' depends on 'preprocess' which has no loaded version. Model 'preprocess' loading failed with error: version 1 is at UNAVAILABLE state: Internal: ModuleNotFoundError: No module named 'nosuchmodule'

At:
  /models/preprocess/1/model.py(1): <module>
"""
)

QUOTED = (
    HEAD
    + r"""
E1123 07:57:26.002671 14223 model_lifecycle.cc:642] "failed to load 'postprocess' version 1: Internal: ValueError: a \"quoted\" word\nand a second line\n\nAt:\n  /models/postprocess/1/model.py(1): <module>\n"
"""
)

EVERY_VERSION = (
    HEAD
    + r"""
E1123 07:45:04.978471 18552 model_lifecycle.cc:642] "failed to load 'inference' version 2: Internal: RuntimeError: weights are gone\n\nAt:\n  /models/inference/streaming.py(46): initialize\n"
E1123 07:45:04.993935 18552 model_lifecycle.cc:642] "failed to load 'inference' version 1: Internal: RuntimeError: weights are gone\n\nAt:\n  /models/inference/streaming.py(46): initialize\n"
error: creating server: Invalid argument - load failed for model 'ensemble_latest': ensemble 'ensemble_latest' depends on 'inference' which has no loaded version. Model 'inference' loading failed with error: version 2 is at UNAVAILABLE state: Internal: RuntimeError: weights are gone
"""
)

TWO_MODELS = (
    HEAD
    + """\
E1123 07:45:15.486796 19374 model_lifecycle.cc:642] "failed to load 'postprocess' version 1: Internal: SyntaxError: invalid syntax (model.py, line 1)"
E1123 07:45:15.489476 19374 model_lifecycle.cc:642] "failed to load 'preprocess' version 1: Internal: ModuleNotFoundError: No module named 'nosuchmodule'"
error: creating server: Invalid argument - load failed for model 'ensemble_latest': ensemble 'ensemble_latest' depends on 'postprocess' which has no loaded version. Model 'postprocess' loading failed with error: version 1 is at UNAVAILABLE state: Internal: SyntaxError: invalid syntax (model.py, line 1);
"""
)

TWO_CONFIGS = (
    HEAD
    + """\
[libprotobuf ERROR /tmp/tritonbuild/protobuf/text_format.cc:337] Error parsing text-format inference.ModelConfig: 2:14: Unexpected end of string.
E1123 07:57:19.824208 13468 model_repository_manager.cc:1460] "Poll failed for model directory 'postprocess': failed to read text proto from /models/postprocess/config.pbtxt"
[libprotobuf ERROR /tmp/tritonbuild/protobuf/text_format.cc:337] Error parsing text-format inference.ModelConfig: 2:5: Message type "inference.ModelConfig" has no field named "nope".
E1123 07:57:19.824244 13468 model_repository_manager.cc:1460] "Poll failed for model directory 'preprocess': failed to read text proto from /models/preprocess/config.pbtxt"
E1123 07:57:19.824290 13468 model_repository_manager.cc:703] "Invalid argument: ensemble ensemble_latest contains models that are not available or ambiguous: preprocess"
error: creating server: Invalid argument - load failed for model 'ensemble_latest': ensemble ensemble_latest contains models that are not available or ambiguous: preprocess
"""
)

WIRING = (
    HEAD
    + """\
E1123 07:44:50.254223 16941 model_repository_manager.cc:1460] "Poll failed for model directory 'ensemble_latest': output 'TEXT' for ensemble 'ensemble_latest' is not written: at least one of its depending tensors, 'TOKEN_IDS', is not connected"
error: creating server: Internal - failed to load all models
"""
)

DTYPE = (
    HEAD
    + """\
E1123 07:44:51.557115 16950 model_repository_manager.cc:703] "Invalid argument: in ensemble ensemble_latest, ensemble tensor TOKEN_IDS: inconsistent data type: TYPE_INT32 is inferred from model inference while TYPE_INT64 is inferred from model postprocess"
error: creating server: Invalid argument - load failed for model 'ensemble_latest': in ensemble ensemble_latest, ensemble tensor TOKEN_IDS: inconsistent data type: TYPE_INT32 is inferred from model inference while TYPE_INT64 is inferred from model postprocess
"""
)

DEAD_STUB = (
    HEAD
    + """\
E1123 07:44:54.793383 17519 backend_model.cc:692] "ERROR: Failed to create instance: Stub process 'postprocess_0_0' is not healthy."
E1123 07:44:54.793474 17519 model_lifecycle.cc:642] "failed to load 'postprocess' version 1: Internal: Stub process 'postprocess_0_0' is not healthy."
error: creating server: Invalid argument - load failed for model 'ensemble_latest': ensemble 'ensemble_latest' depends on 'postprocess' which has no loaded version. Model 'postprocess' loading failed with error: version 1 is at UNAVAILABLE state: Internal: Stub process 'postprocess_0_0' is not healthy.;
"""
)

NO_FOLDER = (
    HEAD
    + """\
E1123 07:45:07.425678 18683 model_repository_manager.cc:1415] "failed to poll model 'preprocess': model not found in any model repository."
E1123 07:45:07.425949 18683 model_repository_manager.cc:703] "Invalid argument: ensemble ensemble_latest contains models that are not available or ambiguous: preprocess"
error: creating server: Invalid argument - load failed for model 'ensemble_latest': ensemble ensemble_latest contains models that are not available or ambiguous: preprocess
"""
)

NO_VERSION = (
    HEAD
    + """\
E1123 07:45:09.960976 18911 model_repository_manager.cc:724] "failed to load model 'preprocess': at least one version must be available under the version policy of model 'preprocess'"
E1123 07:45:10.407009 18911 model_repository_manager.cc:703] "Invalid argument: ensemble 'ensemble_latest' depends on 'preprocess' which has no loaded version. Model 'preprocess' loading failed with error: at least one version must be available under the version policy of model 'preprocess'"
error: creating server: Invalid argument - load failed for model 'ensemble_latest': ensemble 'ensemble_latest' depends on 'preprocess' which has no loaded version. Model 'preprocess' loading failed with error: at least one version must be available under the version policy of model 'preprocess'
"""
)

PORT_TAKEN = """\
I1123 07:57:42.350004 18245 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:37807"
E1123 07:57:42.360629 18245 main.cc:257] "failed to start HTTP service: Unavailable - Socket '127.0.0.1:42693' already in use "
"""

SOME_SOCKET = (
    HEAD
    + r"""
E1123 07:57:26.002671 14223 model_lifecycle.cc:642] "failed to load 'postprocess' version 1: Internal: OSError: [Errno 98] Address already in use\n\nAt:\n  /models/postprocess/1/model.py(3): <module>\n"
"""
)

ROOTS = [
    ("syntax", SYNTAX, {"postprocess": ["SyntaxError: invalid syntax (model.py, line 1)"]}),
    ("import", IMPORT, {"preprocess": ["No module named 'nosuchmodule'"]}),
    ("every version", EVERY_VERSION, {"inference": ["version 2: Internal: RuntimeError", "version 1: Internal"]}),
    ("two models", TWO_MODELS, {"postprocess": ["invalid syntax"], "preprocess": ["No module named 'nosuchmodule'"]}),
    ("two configs", TWO_CONFIGS, {"postprocess": ["2:14: Unexpected end of string"], "preprocess": ["2:5: Message"]}),
    ("wiring", WIRING, {"ensemble_latest": ["'TOKEN_IDS', is not connected"]}),
    ("dtype", DTYPE, {"ensemble_latest": ["TYPE_INT32 is inferred from model inference while TYPE_INT64"]}),
    ("dead stub", DEAD_STUB, {"postprocess": ["Stub process 'postprocess_0_0' is not healthy."]}),
    ("no folder", NO_FOLDER, {"preprocess": ["model not found in any model repository"]}),
    ("no version", NO_VERSION, {"preprocess": ["at least one version must be available"]}),
]


@pytest.mark.parametrize(("text", "expected"), [pytest.param(*case[1:], id=case[0]) for case in ROOTS])
def test_the_model_to_mend_is_named_and_not_the_ensemble_that_needs_it(text, expected):
    found = server_log.failures(text)
    assert list(found) == list(expected)
    for model, words in expected.items():
        assert len(found[model]) == len(words)
        assert all(part in reason for part, reason in zip(words, found[model], strict=True))


@pytest.mark.parametrize(
    "text", ["", HEAD, GOOD, PORT_TAKEN, "error: creating server: Internal - failed to load all models"]
)
def test_where_no_model_failed_there_are_no_failures(text):
    assert server_log.failures(text) == {}


def test_tracebacks_are_readable_lines():
    (reason,) = server_log.failures(IMPORT)["preprocess"]
    assert reason.splitlines() == [
        "failed to load 'preprocess' version 1: Internal: ModuleNotFoundError: No module named 'nosuchmodule'",
        "",
        "At:",
        "  /models/preprocess/1/model.py(1): <module>",
        "  <frozen importlib._bootstrap>(1360): _find_and_load",
    ]


def test_quotes_in_a_message_are_as_they_were_raised():
    (reason,) = server_log.failures(QUOTED)["postprocess"]
    assert reason.splitlines()[0] == "failed to load 'postprocess' version 1: Internal: ValueError: a \"quoted\" word"


def test_a_parse_error_belongs_to_the_config_after_it_only():
    later = TWO_CONFIGS.replace("[libprotobuf ERROR", "[other", 1)
    found = server_log.failures(later)
    assert found["postprocess"] == [
        "Poll failed for model directory 'postprocess': failed to read text proto from /models/postprocess/config.pbtxt"
    ]
    assert "no field named" in found["preprocess"][0]


def test_what_a_model_prints_is_no_failure():
    """A model's own output stands in the log without the head of a record."""
    assert server_log.failures("failed to load 'inference' version 1: said a model\n") == {}


def test_models_are_listed_in_the_order_they_loaded():
    assert server_log.loaded_models(GOOD) == ["postprocess", "preprocess", "inference", "ensemble_latest"]
    assert server_log.loaded_models(HEAD) == []


@pytest.mark.parametrize("text", [text for _, text, _ in ROOTS])
def test_a_failed_model_is_not_listed_as_loaded(text):
    assert server_log.loaded_models(text) == []


def test_the_tail_leaves_out_tables_empty_lines_and_remarks_about_a_missing_gpu():
    lines = server_log.tail(GOOD, 100).splitlines()
    assert [line.partition("] ")[2] for line in lines if "] " in line][-2:] == [
        '"Started HTTPService at 127.0.0.1:52661"',
        '"Started Metrics Service at 127.0.0.1:49933"',
    ]
    hidden = ("|", "+-", "CudaDriverHelper", "unable to create stream", "NVML", "DCGM")
    assert not [line for line in lines if any(part in line for part in hidden)]
    assert all(lines)


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_the_tail_has_as_many_lines_as_asked_for(lines):
    kept = server_log.tail(GOOD, lines).splitlines()
    assert kept == server_log.tail(GOOD, 100).splitlines()[-lines:]
    assert len(kept) == lines


def test_the_tail_of_an_empty_log_is_empty():
    assert server_log.tail("", 12) == ""


def test_a_taken_port_is_seen():
    assert server_log.port_taken(PORT_TAKEN)
    assert not server_log.port_taken(GOOD)


def test_a_models_own_socket_error_is_no_taken_port_of_the_server():
    """Taken for one, the server would be started five times over, and the model's error never shown."""
    assert not server_log.port_taken(SOME_SOCKET)


def test_a_log_that_is_not_there_yet_is_empty(tmp_path):
    assert server_log.read(tmp_path / "server.log") == ""


def test_a_log_with_bytes_that_are_no_text_can_be_read(tmp_path):
    path = tmp_path / "server.log"
    path.write_bytes(b"\xe8\n" + SYNTAX.encode())
    assert list(server_log.failures(server_log.read(path))) == ["postprocess"]
