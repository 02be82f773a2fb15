"""Traces as Triton 2.51 writes them, without a server: nothing is escaped, and the last call comes first."""

from pathlib import Path

STAGES = ("COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END", "REQUEST_END")


def header(identity, model, request_id="", parent=None, version=1) -> bytes:
    text = b'{"id":%d,"model_name":"%s","model_version":%d' % (identity, model.encode(), version)
    if request_id:
        text += b',"request_id":"%s"' % request_id.encode()
    return text + (b',"parent_id":%d}' % parent if parent else b"}")


def stamp(identity, name, ns) -> bytes:
    return b'{"id":%d,"timestamps":[{"name":"%s","ns":%d}]}' % (identity, name.encode(), ns)


def tensor(identity, side, name, data, shape, dtype) -> bytes:
    """`data` is a list of numbers, a list of bytes for BYTES, or bytes to write as they are."""
    if isinstance(data, bytes):
        raw = data
    elif dtype == "BYTES":
        raw = b",".join(b'\\"%s\\"' % text for text in data)
    else:
        raw = b",".join(str(number).encode() for number in data)
    place = b'{"id":%d,"activity":"TENSOR_%s","tensor":{"name":"%s","data":"' % (identity, side.encode(), name.encode())
    dims = ",".join(map(str, shape)).encode()
    return place + raw + b'","shape":"%s","dtype":"%s"}}' % (dims, dtype.encode())


def call(identity, model, tensors=(), *, request_id="", parent=None, start=1000) -> list[bytes]:
    """Records of one call; tensors are (side, name, data, shape, dtype)."""
    records = [header(identity, model, request_id, parent), stamp(identity, "REQUEST_START", start)]
    records += [stamp(identity, "QUEUE_START", start + 10)]
    records += [tensor(identity, *one) for one in tensors]
    return records + [stamp(identity, name, start + 100 + 10 * place) for place, name in enumerate(STAGES)]


def ints(side, name, values, dtype="INT32"):
    return side, name, list(values), (len(values),), dtype


def text(side, name, *texts):
    return side, name, list(texts), (len(texts),), "BYTES"


def decoupled_request(root, lengths, request_id="", start=1000) -> list[bytes]:
    """An ensemble that a producer feeds with messages of these lengths, and a consumer that is called for each."""
    consumer = [
        call(
            root + 2 + n,
            "consumer",
            [ints("QUEUE_INPUT", "IDS", range(length)), ints("BACKEND_OUTPUT", "TEXT_LENGTH", [length])],
            request_id=request_id,
            parent=root,
            start=start + 1000 * n,
        )
        for n, length in enumerate(lengths, 1)
    ]
    sent = [ints("BACKEND_OUTPUT", "IDS", range(length)) for length in lengths]
    producer = call(
        root + 2, "producer", [ints("QUEUE_INPUT", "TOKENS", [1, 2]), *sent], request_id=request_id, parent=root,
        start=start,
    )  # fmt: skip
    tokenizer = call(
        root + 1, "tokenizer", [text("QUEUE_INPUT", "PROMPT", b"hello"), ints("BACKEND_OUTPUT", "TOKENS", [1, 2])],
        request_id=request_id, parent=root, start=start,
    )  # fmt: skip
    answers = [ints("BACKEND_OUTPUT", "TEXT_LENGTH", [length]) for length in lengths]
    ensemble = call(
        root, "ensemble", [text("QUEUE_INPUT", "PROMPT", b"hello"), *answers], request_id=request_id, start=start
    )
    groups = [*reversed(consumer), producer, tokenizer, ensemble]
    return [record for group in groups for record in group]


def save(path: Path, records) -> Path:
    path.write_bytes(b"[" + b",".join(records) + b"]")
    return path
