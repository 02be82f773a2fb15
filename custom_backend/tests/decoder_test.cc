#include "token_text/decoder.h"

#include <thread>

#include "check.h"

namespace token_stream {
namespace {

using std::chrono::seconds;
using Clock = DecoderTable::Clock;

const std::string kReplaced = "\xEF\xBF\xBD";

std::string decoded(const std::vector<std::string>& pieces) {
  TextDecoder decoder;
  std::string text;
  for (const std::string& piece : pieces) text += decoder.decode(piece, false);
  text += decoder.decode("", true);
  return text;
}

// The expected texts are what Python's incremental decoder says with errors="replace".
TEST(text_in_pieces) {
  const std::string emoji = "\xF0\x9F\x98\x80";
  CHECK_EQUAL(decoded({"a", "", "b"}), "ab");
  CHECK_EQUAL(decoded({"\xF0", "\x9F", "\x98", "\x80"}), emoji);
  CHECK_EQUAL(decoded({"x\xE8", "\xBF\x99y"}), "x\xE8\xBF\x99y");
  CHECK_EQUAL(decoded({"\xF0\x9F", "\x98"}), kReplaced);
  CHECK_EQUAL(decoded({"\xE8", "a"}), kReplaced + "a");
  CHECK_EQUAL(decoded({"\xE8\xBF", "\xE8\xBF\x99"}), kReplaced + "\xE8\xBF\x99");
  CHECK_EQUAL(decoded({"\x80\xBF"}), kReplaced + kReplaced);
  CHECK_EQUAL(decoded({"\xC0\x80"}), kReplaced + kReplaced);
  CHECK_EQUAL(decoded({"\xE0\x80\x80"}), kReplaced + kReplaced + kReplaced);
  CHECK_EQUAL(decoded({"\xED\xA0\x80"}), kReplaced + kReplaced + kReplaced);
  CHECK_EQUAL(decoded({"\xF0\x9F\x98", "a"}), kReplaced + "a");
  CHECK_EQUAL(decoded({"\xF4\x90\x80\x80"}), kReplaced + kReplaced + kReplaced + kReplaced);
  CHECK_EQUAL(decoded({"\xF1\x80\xF1", "\x80\x80\x80"}), kReplaced + "\xF1\x80\x80\x80");
  CHECK_EQUAL(decoded({"\xFF" + emoji}), kReplaced + emoji);
}

TEST(text_of_every_cut) {
  const std::string whole = "a\xC3\xA9\xE8\xBF\x99\xF0\x9F\x98\x80z";
  for (size_t a = 0; a <= whole.size(); ++a) {
    for (size_t b = a; b <= whole.size(); ++b) {
      CHECK_EQUAL(decoded({whole.substr(0, a), whole.substr(a, b - a), whole.substr(b)}), whole);
    }
  }
}

TEST(a_decoder_after_its_end_is_new) {
  TextDecoder decoder;
  CHECK_EQUAL(decoder.decode("\xE8", true), kReplaced);
  CHECK_EQUAL(decoder.decode("\xBF", false), kReplaced);
  CHECK_EQUAL(decoder.decode("a", true), "a");
}

TEST(streams_do_not_mix) {
  DecoderTable table(seconds(15));
  CHECK_EQUAL(table.decode(1, "\xE8", false), "");
  CHECK_EQUAL(table.decode(2, "\xF0\x9F", false), "");
  CHECK_EQUAL(table.decode(1, "\xBF\x99", false), "\xE8\xBF\x99");
  CHECK_EQUAL(table.sweep(), 2U);
  CHECK_EQUAL(table.decode(2, "\x98\x80", true), "\xF0\x9F\x98\x80");
  CHECK_EQUAL(table.sweep(), 1U);
  table.decode(1, "\xE8", false);
  table.drop(1);
  table.drop(1);
  CHECK_EQUAL(table.sweep(), 0U);
  CHECK_EQUAL(table.decode(1, "\xBF", true), kReplaced);
}

TEST(the_bound_of_the_table) {
  DecoderTable table(seconds(15));
  const int64_t most = static_cast<int64_t>(DecoderTable::kMostStreams);
  for (int64_t stream = 0; stream < most; ++stream) table.decode(stream, "\xE8", false);
  table.decode(0, "\xBF", false);   // stream 0 is the newest now, and stream 1 the oldest
  CHECK_EQUAL(table.sweep(), DecoderTable::kMostStreams);
  table.decode(most, "\xE8", false);
  CHECK_EQUAL(table.sweep(), DecoderTable::kMostStreams);
  CHECK_EQUAL(table.decode(0, "\x99", true), "\xE8\xBF\x99");
  CHECK_EQUAL(table.decode(1, "\xBF\x99", true), kReplaced + kReplaced);  // it was dropped
  CHECK_EQUAL(table.decode(2, "\xBF\x99", true), "\xE8\xBF\x99");
}

TEST(idle_streams_are_dropped) {
  const Clock::time_point begin = Clock::now();
  DecoderTable table(seconds(15));
  table.decode(1, "\xE8", false, begin);
  table.decode(2, "\xE8", false, begin + seconds(10));
  CHECK_EQUAL(table.sweep(begin + seconds(15)), 2U);
  CHECK_EQUAL(table.sweep(begin + seconds(16)), 1U);
  table.decode(2, "\xBF", false, begin + seconds(25));  // used again: idle from now on
  CHECK_EQUAL(table.sweep(begin + seconds(40)), 1U);
  CHECK_EQUAL(table.sweep(begin + seconds(41)), 0U);
  table.decode(3, "\xE8", false, begin + seconds(50));
  table.decode(4, "a", true, begin + seconds(66));  // the use of another stream drops it, too
  CHECK_EQUAL(table.decode(3, "\xBF\x99", true, begin + seconds(66)), kReplaced + kReplaced);
}

TEST(a_table_of_several_threads) {
  DecoderTable table(seconds(15));
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&table, thread] {
      for (int64_t stream = thread * 1000; stream < thread * 1000 + 100; ++stream) {
        CHECK_EQUAL(table.decode(stream, "\xE8", false), "");
        if (stream % 3 == 0) table.sweep();
        CHECK_EQUAL(table.decode(stream, "\xBF", false), "");
        CHECK_EQUAL(table.decode(stream, "\x99", true), "\xE8\xBF\x99");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(table.sweep(), 0U);
}

}  // namespace
}  // namespace token_stream
