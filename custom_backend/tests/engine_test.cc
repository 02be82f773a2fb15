// The engine and its streams, with a sender that writes down what it is given.

#include <set>
#include <thread>

#include "cuda_stand_in.h"
#include "recorder.h"

namespace token_stream {
namespace {

using Lengths = std::vector<size_t>;
using Records = std::vector<std::shared_ptr<Record>>;

Ids counted(size_t length, int32_t first = 64) {
  Ids ids;
  for (size_t i = 0; i < length; ++i) ids.push_back(first + static_cast<int32_t>(i % 20));
  return ids;
}

Parameters window(int64_t messages, int64_t key) { return {{"window", messages}, {"window_key", key}}; }
Parameters grant(int64_t messages, int64_t key) { return {{"grant", messages}, {"window_key", key}}; }

// What holds for every message of a stream, and of every stream that ended well.
void check_stream(const Record& record, const Ids& expected, bool ended = true) {
  const std::vector<Sent> sent = record.sent();
  CHECK_EQUAL(record.newest_ids(), expected);
  int32_t index = 0;
  uint32_t checksum = 0;
  for (const Sent& one : sent) {
    CHECK_EQUAL(one.message.index, ++index);
    CHECK_EQUAL(one.message.stream_id, sent.front().message.stream_id);
    CHECK_EQUAL(one.message.checksum, static_cast<int64_t>(checksum = crc32({one.message.ids.back()}, checksum)));
    CHECK_EQUAL(one.message.end, ended && static_cast<size_t>(index) == sent.size());
    CHECK_EQUAL(one.error, "");
  }
  CHECK_EQUAL(record.finished(), 1U);
}

// --- what is sent ----------------------------------------------------------------------------------------------------

TEST(messages_of_each_rung) {
  const std::vector<std::pair<const char*, Lengths>> expected{{"append", {1, 2, 4, 8, 16, 32, 64, 128}},
                                                              {"release", {1, 2, 4, 8, 16, 32, 64, 128}},
                                                              {"replace", {1, 2, 3, 1, 1, 1, 1, 1}},
                                                              {"latest", {1, 1, 1, 1, 1, 1, 1, 1}}};
  for (const auto& [rung, lengths] : expected) {
    Rig rig(rung);
    for (int stream = 0; stream < 2; ++stream) {
      const auto record = rig.forced(reported());
      record->await_free();
      check_stream(*record, reported());
      const bool goes_on = stream == 1 && std::string(rung) == "append";
      CHECK_EQUAL(record->lengths(), goes_on ? (Lengths{256, 512, 1024, 2048, 4096, 8192, 16384, 32768}) : lengths);
    }
    CHECK(rig.errors().empty());
  }
}

TEST(texts_of_the_model) {
  Rig rig("latest");
  for (const char* name : {"vanilla", "emoji", "long"}) {
    const auto record = rig.prompt(reference().ids(std::string(name) + ".prompt"), 256, {{"guard", true}});
    record->await_free();
    check_stream(*record, reference().ids(std::string(name) + ".greedy"));
  }
  const auto three = rig.prompt(reference().ids("vanilla.prompt"), 3);
  three->await_free();
  check_stream(*three, {8908, 234, 114});
}

TEST(a_text_that_ends_at_once_has_an_end_mark) {
  Rig rig("latest");
  Ids whole = reference().ids("vanilla.prompt");
  for (const int32_t id : reference().ids("vanilla.greedy")) whole.push_back(id);
  const auto record = rig.prompt(whole, 256, {{"guard", true}});
  record->await_free();
  CHECK_EQUAL(record->lengths(), (Lengths{0}));
  CHECK(record->sent().front().message.end);
  CHECK_EQUAL(record->error(), "");
}

TEST(a_full_context_ends_the_text) {
  Rig rig("latest");
  const auto record = rig.prompt(counted(254));
  record->await_free();
  CHECK_EQUAL(record->count(), 1U);
  CHECK(record->sent().front().message.end);
}

TEST(requests_that_are_refused) {
  Rig rig("latest");
  const std::vector<std::pair<std::shared_ptr<Record>, std::string>> bad{
      {rig.prompt({}), "the prompt is empty"},
      {rig.prompt(counted(255)), "the prompt has 255 tokens"},
      {rig.prompt({64}, 0), "MAX_TOKENS is 0; ask for at least 1"},
      {rig.prompt({64}, -5), "MAX_TOKENS is -5; ask for at least 1"},
      {rig.forced({}), "FORCED_IDS is empty"},
      {rig.forced({64, -1}), "token id -1 at position 1 is not in the vocabulary"},
      {rig.forced(reported(), grant(1, 5)), "no stream has the window key 5; it may have ended"},
  };
  for (const auto& [record, words] : bad) {
    record->await_free();
    CHECK_EQUAL(record->count(), 1U);
    CHECK(record->error().find(words) == 0);
    CHECK(record->sent().front().message.end);
    CHECK(record->sent().front().message.ids.empty());
    CHECK_EQUAL(record->finished(), 1U);
  }
  const auto well = rig.forced({64});
  well->await_free();
  check_stream(*well, {64});
}

TEST(a_request_that_could_not_be_read) {
  Rig rig("latest");
  auto record = std::make_shared<Record>();
  Request request;
  request.sender = std::make_unique<RecordingSender>(record);
  request.options = read_options({}, Rig::kLimits);
  rig.engine().refuse(std::move(request), "it is in Klingon");
  record->await_free();
  CHECK_EQUAL(record->error(), "it is in Klingon");
  CHECK_EQUAL(record->finished(), 1U);
}

TEST(a_message_that_would_be_too_long) {
  Rig rig("append");
  const auto record = rig.forced(reported(), {{"max_message_ids", int64_t{20}}});
  record->await_free();
  CHECK_EQUAL(record->lengths(), (Lengths{1, 2, 4, 8, 16, 0}));
  CHECK(record->error().find("message 6 would hold 32 ids; at most 20 are allowed in one message") == 0);
}

TEST(the_guard_ends_a_stream_in_band) {
  Rig rig("append");
  const auto record = rig.forced(reported(), {{"guard", true}});
  record->await_free();
  CHECK_EQUAL(record->lengths(), (Lengths{1, 0}));
  CHECK(record->error().find("1 message(s) of the stream kept the contract") == 0);
}

// --- what is held ----------------------------------------------------------------------------------------------------

TEST(held_bytes_are_told_where_they_are_asked_for) {
  Rig rig("append");
  const auto untraced = rig.forced({64, 65});
  untraced->await_free();
  for (const Sent& one : untraced->sent()) CHECK_EQUAL(one.heap, kNotTraced);
  const auto traced = rig.forced(reported(), {{"trace_heap", true}});
  traced->await_free();
  CHECK_EQUAL(traced->sent().front().heap, 8 * 4);  // the eight ids that wait; the buffer is empty
  CHECK(traced->sent().back().heap >= 127 * 4);
  const auto prompt = rig.prompt(reference().ids("english.prompt"), 4, {{"trace_heap", true}});
  prompt->await_free();
  const int64_t cache = 3 * 2 * 64 * kContext * 4;
  CHECK(prompt->sent().front().heap > cache);
  CHECK(prompt->sent().back().heap < cache);  // the cache is freed with the last token that is decoded
}

TEST(a_buffer_on_a_gpu_grows_as_the_rung_says) {
  const size_t before = cuda::counts().bytes_held;
  using Left = std::vector<std::pair<const char*, size_t>>;
  const Left left{{"append", 255}, {"release", 0}, {"replace", 0}, {"latest", 0}};
  const Device device(0);
  for (const auto& [rung, ids] : left) {
    const size_t allocations = cuda::counts().allocations;
    Rig rig(rung, Rig::kLimits, &device);
    const auto record = rig.forced(reported(), window(7, 1));
    record->await_count(7);
    const size_t pending = std::string(rung) == "latest" || std::string(rung) == "replace" ? 0 : 127;
    while (cuda::counts().bytes_held != before + pending * 4) std::this_thread::yield();  // it follows the message
    rig.forced(reported(), grant(1, 1));
    record->await_free();
    CHECK_EQUAL(cuda::counts().bytes_held, before + ids * 4);
    const size_t expected = std::string(rung) == "latest" ? 0 : std::string(rung) == "replace" ? 2 : 8;
    CHECK_EQUAL(cuda::counts().allocations - allocations, expected);
  }
  CHECK_EQUAL(cuda::counts().bytes_held, before);
}

TEST(a_gpu_that_is_full_ends_the_stream_alone) {
  const size_t before = cuda::counts().bytes_held;
  const Device device(0);
  Rig rig("release", Rig::kLimits, &device);
  cuda::fail("cudaMalloc");
  const auto failed = rig.forced(reported());
  failed->await_free();
  cuda::fail("");
  CHECK_EQUAL(failed->error(), "internal error: cudaMalloc on GPU 0: out of memory");
  const auto well = rig.forced(reported());
  well->await_free();
  CHECK_EQUAL(well->error(), "");
  CHECK_EQUAL(cuda::counts().bytes_held, before);
}

TEST(a_gpu_that_takes_nothing_back_ends_nobody) {
  const Device device(0);
  Rig rig("release", Rig::kLimits, &device);
  const auto record = rig.forced({8908, 234}, window(1, 1));
  record->await_count(1);
  cuda::fail("cudaFree");
  record->cancel();
  record->await_free();
  cuda::fail("");
  const auto next = rig.forced({64});
  next->await_free();
  check_stream(*next, {64});
}

// --- many at once ----------------------------------------------------------------------------------------------------

TEST(thirty_two_streams_from_several_threads) {
  Rig rig("latest");
  const std::vector<std::string> names{"vanilla", "english", "emoji", "not_in_corpus", "question"};
  Records records(32);
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (size_t i = thread; i < records.size(); i += 4) {
        records[i] = rig.prompt(reference().ids(names[i % names.size()] + ".prompt"), 5 + static_cast<int64_t>(i));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<int64_t> ids;
  for (size_t i = 0; i < records.size(); ++i) {
    records[i]->await_free();
    Ids expected = reference().ids(names[i % names.size()] + ".greedy");
    expected.resize(std::min(expected.size(), 5 + i));
    check_stream(*records[i], expected);
    ids.insert(records[i]->sent().front().message.stream_id);
  }
  CHECK_EQUAL(ids.size(), records.size());
  rig.unload();
  CHECK_EQUAL(rig.open_streams().back(), 0U);
  CHECK(rig.errors().empty());
}

// Streams of every kind come and go: some are cancelled, some fail, some wait; each gets what it would get alone.
TEST(streams_that_join_and_leave) {
  Rig rig("latest", {1000, 1000, 4, 300, 10});
  Records forced, prompts, cancelled, broken;
  for (size_t i = 0; i < 60; ++i) {
    forced.push_back(rig.forced(counted(1 + i)));
    if (i % 3 == 0) prompts.push_back(rig.prompt(reference().ids("english.prompt"), 1 + static_cast<int64_t>(i % 7)));
    auto record = std::make_shared<Record>();
    record->cancel_at(i % 5);
    Request request;
    request.forced = counted(50);
    request.max_tokens = 50;
    if (i % 4 == 0) {
      if (i % 5 == 0) record->throw_at(1 + i % 6);
      (i % 5 == 0 ? broken : cancelled).push_back(rig.submit(std::move(request), {}, record));
    }
  }
  for (size_t i = 0; i < forced.size(); ++i) {
    forced[i]->await_free();
    check_stream(*forced[i], counted(1 + i));
  }
  Ids english = reference().ids("english.greedy");
  for (size_t i = 0; i < prompts.size(); ++i) {
    prompts[i]->await_free();
    check_stream(*prompts[i], Ids(english.begin(), english.begin() + 1 + static_cast<std::ptrdiff_t>(3 * i % 7)));
  }
  for (const auto& record : cancelled) {
    record->await_free();
    CHECK(record->count() < 5);
    CHECK_EQUAL(record->error(), "");
  }
  for (const auto& record : broken) {
    record->await_free();
    CHECK_EQUAL(record->finished(), 1U);
  }
}

TEST(one_place_in_the_batch) {
  Rig rig("latest", {1000, 1000, 1, 8, 10});
  Records records;
  for (int i = 0; i < 5; ++i) records.push_back(rig.prompt(reference().ids("question.prompt"), 4));
  const Ids greedy = reference().ids("question.greedy");
  for (const auto& record : records) {
    record->await_free();
    check_stream(*record, Ids(greedy.begin(), greedy.begin() + 4));
  }
}

TEST(a_prompt_that_fails_leaves_its_place_to_the_next) {
  Rig rig("latest", {1000, 1000, 1, 8, 10});
  Records records;
  for (int i = 0; i < 6; ++i) records.push_back(rig.prompt(i % 2 ? Ids{64} : Ids{}, 2));
  for (size_t i = 0; i < records.size(); ++i) {
    records[i]->await_free();
    CHECK_EQUAL(records[i]->error().empty(), i % 2 == 1);
  }
}

TEST(a_node_that_is_full) {
  Rig rig("latest", {1000, 1000, 2, 1, 10});
  Records held;
  for (int64_t key = 1; key <= 3; ++key) {
    held.push_back(rig.forced(counted(9), window(1, key)));
    held.back()->await_count(1);
  }
  const auto late = rig.forced({64});
  late->await_free();
  CHECK_EQUAL(late->error(), "the node is full: 2 streams are decoded and 1 wait; try again later");
  held[1]->cancel();
  held[1]->await_free();
  const auto now = rig.forced({64});
  now->await_free();
  check_stream(*now, {64});
}

// --- clients that leave, and senders that fail -----------------------------------------------------------------------

TEST(a_cancelled_stream_ends_alone) {
  Rig rig("latest");
  const auto other = rig.forced(counted(2000));
  auto record = std::make_shared<Record>();
  record->cancel_at(3);
  Request request;
  request.prompt = reference().ids("vanilla.prompt");
  request.max_tokens = 90;
  rig.submit(std::move(request), {}, record);
  record->await_free();
  CHECK_EQUAL(record->lengths(), (Lengths{1, 1, 1}));
  CHECK_EQUAL(record->finished(), 1U);
  other->await_free();
  check_stream(*other, counted(2000));
}

TEST(a_stream_that_waits_for_its_client_is_cancelled) {
  Rig rig("latest");
  const auto record = rig.forced(counted(9), window(2, 1));
  record->await_count(2);
  record->cancel();
  record->await_free();
  CHECK_EQUAL(record->count(), 2U);
}

// The server crashes where a last response comes right behind a cancellation.
TEST(a_grant_of_nothing_does_not_hurry_a_cancelled_stream) {
  Rig rig("latest");
  const auto record = rig.forced(counted(9), window(2, 1));
  record->await_count(2);
  record->cancel();
  rig.forced({}, grant(0, 1))->await_free();
  CHECK_EQUAL(record->finished(), 0U);
  record->await_free();
  CHECK_EQUAL(record->count(), 2U);
  CHECK_EQUAL(record->finished(), 1U);
}

TEST(a_sender_that_throws) {
  Rig rig("latest");
  const auto other = rig.forced(counted(500));
  auto failing = std::make_shared<Record>();
  failing->throw_at(3);
  Request request;
  request.forced = counted(9);
  request.max_tokens = 9;
  rig.submit(std::move(request), {}, failing);
  failing->await_free();
  CHECK_EQUAL(failing->lengths(), (Lengths{1, 1}));
  CHECK_EQUAL(failing->finished(), 1U);
  other->await_free();
  check_stream(*other, counted(500));
  CHECK_EQUAL(rig.errors(), (std::vector<std::string>{"a stream could not be closed: no way"}));
}

TEST(a_sender_that_throws_at_its_end) {
  Rig rig("latest");
  auto record = std::make_shared<Record>();
  record->throw_at_finish();
  Request request;
  request.forced = counted(2);
  request.max_tokens = 2;
  rig.submit(std::move(request), {}, record);
  record->await_free();
  CHECK_EQUAL(rig.errors(), (std::vector<std::string>{"a stream could not be closed: no end"}));
  CHECK_EQUAL(record->finished(), 1U);
}

TEST(a_sender_that_cannot_be_asked) {
  Rig rig("latest");
  auto record = std::make_shared<Record>();
  record->throw_when_asked();
  Request request;
  request.forced = counted(2);
  request.max_tokens = 2;
  rig.submit(std::move(request), {}, record);
  record->await_free();
  CHECK_EQUAL(record->error(), "internal error: no answer");
}

// --- windows ---------------------------------------------------------------------------------------------------------

TEST(a_window_holds_back_and_a_grant_lets_go) {
  Rig rig("latest");
  const auto record = rig.forced(counted(9), window(2, 7));
  record->await_count(2);
  const auto other = rig.forced(counted(100));  // a hundred iterations, in which nothing may be sent
  other->await_free();
  CHECK_EQUAL(record->count(), 2U);
  const auto first = rig.forced({}, grant(3, 7));
  first->await_free();
  CHECK_EQUAL(first->count(), 0U);
  CHECK_EQUAL(first->finished(), 1U);
  record->await_count(5);
  rig.forced({}, grant(std::numeric_limits<int64_t>::max(), 7));
  record->await_free();
  check_stream(*record, counted(9));
}

TEST(grants_that_add_up_to_more_than_fits) {
  Window window(1, 5, 10);
  for (int i = 0; i < 3; ++i) window.grant(std::numeric_limits<int64_t>::max());
  CHECK(!window.spent());
  window.spend();
  CHECK(!window.spent());
  Window overdrawn(1, 0, 10);
  overdrawn.spend();
  overdrawn.grant(std::numeric_limits<int64_t>::max());
  CHECK(!overdrawn.spent());
}

TEST(a_grant_of_nothing_ends_the_stream) {
  Rig rig("latest");
  const auto record = rig.forced(counted(9), window(2, 7));
  record->await_count(2);
  const auto cut = rig.forced({}, grant(0, 7));
  cut->await_free();
  record->await_free();
  CHECK_EQUAL(record->lengths(), (Lengths{1, 1, 0}));
  CHECK(record->sent().back().message.end);
  CHECK_EQUAL(record->error(), "");
  const auto late = rig.forced({}, grant(1, 7));
  late->await_free();
  CHECK_EQUAL(late->error(), "no stream has the window key 7; it may have ended");
}

TEST(a_grant_of_nothing_to_a_sender_that_throws) {
  Rig rig("latest");
  auto record = std::make_shared<Record>();
  record->throw_at(3);
  Request request;
  request.forced = counted(9);
  request.max_tokens = 9;
  rig.submit(std::move(request), window(2, 7), record);
  record->await_count(2);
  const auto cut = rig.forced({}, grant(0, 7));
  cut->await_free();
  CHECK_EQUAL(cut->error(), "");
  record->await_free();
  CHECK_EQUAL(record->finished(), 1U);
}

TEST(a_window_key_belongs_to_one_stream) {
  Rig rig("latest");
  const auto first = rig.forced(counted(3), window(1, 7));
  const auto second = rig.forced(counted(3), window(1, 7));
  second->await_free();
  CHECK_EQUAL(second->error(), "the window key 7 is in use; take another");
  rig.forced({}, grant(9, 7));
  first->await_free();
  check_stream(*first, counted(3));
  const auto third = rig.forced(counted(1), window(1, 7));
  third->await_free();
  check_stream(*third, counted(1));
}

TEST(a_client_that_is_lost) {
  Rig rig("latest", {1000, 1000, 32, 64, 0.05});
  const auto record = rig.forced(counted(9), window(2, 7));
  record->await_free();
  CHECK_EQUAL(record->lengths(), (Lengths{1, 1, 0}));
  CHECK_EQUAL(record->error(), "the client granted no message for 0.05 s: it is taken for lost");
}

TEST(a_stream_with_nothing_left_to_send_needs_no_grant) {
  Rig rig("latest");
  const auto record = rig.forced(counted(2), window(2, 7));
  record->await_free();
  check_stream(*record, counted(2));
}

// --- the end ---------------------------------------------------------------------------------------------------------

TEST(a_node_that_is_unloaded_in_the_middle) {
  Rig rig("latest", {1000, 1000, 1, 64, 10});
  Records records;
  for (int64_t key = 1; key < 6; ++key) records.push_back(rig.forced(counted(9), window(2, key)));
  for (int i = 0; i < 4; ++i) records.push_back(rig.prompt(reference().ids("english.prompt"), 20, window(1, 10 + i)));
  for (size_t i = 0; i < 6; ++i) records[i]->await_count(1);
  auto failing = std::make_shared<Record>();
  failing->throw_at(2);
  Request request;
  request.forced = counted(9);
  request.max_tokens = 9;
  rig.submit(std::move(request), window(1, 99), failing);
  failing->await_count(1);
  rig.unload();
  for (const auto& record : records) {
    CHECK(record->freed());
    CHECK_EQUAL(record->finished(), 1U);
    CHECK_EQUAL(record->error(), "internal error: the model was unloaded");
    CHECK(record->sent().back().message.end);
  }
  CHECK(failing->freed());
  CHECK_EQUAL(failing->finished(), 1U);
  CHECK_EQUAL(rig.open_streams().back(), 0U);
}

TEST(what_was_ordered_before_the_end_is_answered) {
  for (int round = 0; round < 20; ++round) {
    Records records;
    {
      Rig rig("latest");
      for (int i = 0; i < 10; ++i) records.push_back(rig.forced(counted(1)));
      records.push_back(rig.forced(counted(1), grant(1, 5)));
    }
    for (const auto& record : records) {
      CHECK(record->freed());
      CHECK_EQUAL(record->finished(), 1U);
      CHECK_EQUAL(record->count(), 1U);
    }
  }
}

TEST(nothing_follows_the_end_mark) {
  Rig rig("latest");
  const auto record = std::make_shared<Record>();
  Request request;
  request.sender = std::make_unique<RecordingSender>(record);
  request.forced = Ids{64};
  request.max_tokens = 1;
  request.options = read_options({}, Rig::kLimits);
  Stream stream(rig.node(), std::move(request));
  stream.prepare();
  CHECK(stream.advance(kNotTraced));
  stream.cut();
  stream.close("too late");
  check_stream(*record, {64});
}

TEST(an_engine_without_streams_ends) {
  Rig rig("append");
  rig.unload();
  CHECK_EQUAL(rig.open_streams().back(), 0U);
}

}  // namespace
}  // namespace token_stream
