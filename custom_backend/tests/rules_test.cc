// What a request may ask for, what a message holds, and what it must be: options, rungs and the guard.

#include <limits>
#include <stdexcept>

#include "recorder.h"

namespace token_stream {
namespace {

using Refused = std::invalid_argument;

constexpr Limits kLimits{1000, 5000, 32, 64, 10};
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

// --- options ---------------------------------------------------------------------------------------------------------

TEST(options_by_default) {
  const Options options = read_options({{"something_else", 7.0}}, kLimits);
  CHECK_EQUAL(options.max_message_ids, 1000);
  CHECK(!options.trace_heap && !options.guard && !options.log);
  CHECK(!options.window && !options.window_key && !options.grant);
}

TEST(options_as_given) {
  const Options options = read_options({{"max_message_ids", int64_t{5000}}, {"trace_heap", true}, {"guard", true},
                                        {"log", true}, {"window", kMost}, {"window_key", int64_t{1}}}, kLimits);
  CHECK_EQUAL(options.max_message_ids, 5000);
  CHECK(options.trace_heap && options.guard && options.log);
  CHECK_EQUAL(options.window, kMost);
  CHECK_EQUAL(options.window_key, 1);
  const Options grant = read_options({{"grant", int64_t{0}}, {"window_key", kMost}, {"log", false}}, kLimits);
  CHECK_EQUAL(grant.grant, 0);
  CHECK(!grant.log);
}

struct Bad {
  Parameters given;
  const char* words;
};

TEST(options_that_are_refused) {
  const std::string whole = "expected a whole number from ";
  const Bad bad[] = {
      {{{"max_message_ids", int64_t{0}}}, "\"max_message_ids\" is 0; expected a whole number from 1 to 5,000"},
      {{{"max_message_ids", int64_t{5001}}}, "\"max_message_ids\" is 5001; expected a whole number from 1 to 5,000"},
      {{{"max_message_ids", 7.0}}, "\"max_message_ids\" is 7.0; expected a whole number"},
      {{{"max_message_ids", 0.5}}, "\"max_message_ids\" is 0.5; expected"},
      {{{"max_message_ids", -1e300}}, "\"max_message_ids\" is -1e+300; expected"},
      {{{"max_message_ids", std::numeric_limits<double>::infinity()}}, "\"max_message_ids\" is inf; expected"},
      {{{"max_message_ids", std::string("many")}}, "\"max_message_ids\" is 'many'; expected"},
      {{{"max_message_ids", true}}, "\"max_message_ids\" is True; expected"},
      {{{"trace_heap", int64_t{1}}}, "\"trace_heap\" is 1; expected true or false"},
      {{{"guard", std::string("yes")}}, "\"guard\" is 'yes'; expected true or false"},
      {{{"log", 1.0}}, "\"log\" is 1.0; expected true or false"},
      {{{"window", int64_t{0}}}, "\"window\" is 0; expected a whole number from 1 to 9,223,372,036,854,775,807"},
      {{{"window_key", int64_t{0}}, {"window", int64_t{1}}}, "\"window_key\" is 0; expected a whole number from 1"},
      {{{"grant", int64_t{-1}}}, "\"grant\" is -1; expected a whole number from 0"},
      {{{"grant", false}}, "\"grant\" is False; expected a whole number"},
      {{{"window", int64_t{1}}, {"grant", int64_t{1}}, {"window_key", int64_t{1}}}, "exclude each other"},
      {{{"window", int64_t{1}}}, "\"window\" needs a \"window_key\""},
      {{{"grant", int64_t{1}}}, "\"grant\" needs a \"window_key\""},
      {{{"window_key", int64_t{1}}}, "\"window_key\" needs a \"window\" that it opens, or a \"grant\" for one"},
  };
  for (const Bad& one : bad) CHECK_THROWS(Refused, read_options(one.given, kLimits), one.words);
}

// --- rungs -----------------------------------------------------------------------------------------------------------

// Lengths of the messages of a stream; what is pending may go on from a stream before.
std::vector<size_t> lengths(const char* rung, const Ids& ids, Ids& pending) {
  static const TokenBytes kTokens(checking::file("models/token_stream_latest/token_bytes.safetensors"));
  const Rung& found = find_rung(rung);
  std::vector<size_t> out;
  for (const int32_t id : ids) {
    const Ids message = found.message(pending, id);
    CHECK_EQUAL(message.back(), id);
    found.keep(pending, message, kTokens.decodes_cleanly(message));
    out.push_back(message.size());
  }
  return out;
}

TEST(rungs_of_the_reported_ids) {
  using Lengths = std::vector<size_t>;
  Ids append, release, replace, latest;
  CHECK_EQUAL(lengths("append", reported(), append), (Lengths{1, 2, 4, 8, 16, 32, 64, 128}));
  CHECK_EQUAL(append.size(), 255U);
  CHECK_EQUAL(lengths("append", {64}, append), (Lengths{256}));
  CHECK_EQUAL(lengths("release", reported(), release), (Lengths{1, 2, 4, 8, 16, 32, 64, 128}));
  CHECK_EQUAL(lengths("replace", reported(), replace), (Lengths{1, 2, 3, 1, 1, 1, 1, 1}));
  CHECK_EQUAL(lengths("latest", reported(), latest), (Lengths{1, 1, 1, 1, 1, 1, 1, 1}));
  CHECK(replace.empty() && latest.empty());
  Ids clean;
  CHECK_EQUAL(lengths("append", {64, 65, 66}, clean), (Lengths{1, 1, 1}));
  CHECK(clean.empty());
}

TEST(rungs_by_name) {
  for (const char* name : {"append", "release", "replace", "latest"}) {
    CHECK_EQUAL(std::string(find_rung(name).name), name);
    CHECK_EQUAL(find_rung(name).buffer_of_instance, std::string(name) == "append");
  }
  CHECK_THROWS(Refused, find_rung("Latest"), "\"rung\" is \"Latest\"; expected append, release, replace or latest");
}

// --- the guard -------------------------------------------------------------------------------------------------------

constexpr size_t kVocabulary = 100;

Message message(int32_t index, Ids ids, const Ids& made, bool end = false) {
  return {std::move(ids), index, 7, end, static_cast<int64_t>(crc32(made, 0))};
}

TEST(checksums) {
  CHECK_EQUAL(crc32({}, 0), 0U);
  CHECK_EQUAL(crc32({0x34333231, 0x38373635}, 0), 0x9AE0DAAFU);  // "12345678"
  CHECK_EQUAL(crc32({0x38373635}, crc32({0x34333231}, 0)), 0x9AE0DAAFU);
  CHECK_EQUAL(crc32({-1}, 0), 0xFFFFFFFFU);
}

TEST(a_stream_that_keeps_the_contract) {
  StreamGuard guard(kVocabulary);
  CHECK_THROWS(Refused, guard.finish(), "the stream has 0 message(s), and none has the end mark (end)");
  guard.check(message(1, {0}, {0}));
  guard.check(message(2, {99}, {0, 99}));
  CHECK_THROWS(Refused, guard.finish(), "the stream has 2 message(s), and none has the end mark (end)");
  guard.check(message(3, {5}, {0, 99, 5}, true));
  guard.finish();
}

// Each rule is broken at the second message, after one that was right.
void breaks(const Message& second, const std::string& words) {
  StreamGuard guard(kVocabulary);
  guard.check(message(1, {1}, {1}));
  const std::string kept = "1 message(s) of the stream kept the contract; the next one does not ";
  CHECK_THROWS(Refused, guard.check(second), kept + words);
  CHECK_THROWS(Refused, guard.check(message(2, {2}, {1, 2})), words);  // and every message after it
}

TEST(each_rule_of_the_guard) {
  breaks(message(2, {1, 2}, {1, 2}), "(length): TOKEN_IDS holds 2 ids; expected 1");
  breaks(message(2, {}, {1}), "(length): TOKEN_IDS holds 0 ids; expected 1");
  breaks(message(2, Ids(1024, 1), {1, 2}), "(length): TOKEN_IDS holds 1,024 ids; expected 1");
  breaks(message(2, {-1}, {1, -1}), "(vocabulary): id -1 is not in the vocabulary (0 to 99)");
  breaks(message(2, {100}, {1, 100}), "(vocabulary): id 100 is not in the vocabulary (0 to 99)");
  Message other = message(2, {2}, {1, 2});
  other.stream_id = 8;
  breaks(other, "(stream): STREAM_ID is 8; the stream began with 7");
  breaks(message(1, {2}, {1, 2}), "(index): INDEX is 1; expected 2");
  breaks(message(3, {2}, {1, 2}), "(index): INDEX is 3; expected 2");
  breaks(message(2, {2}, {1, 3}), "(checksum): its ids are not those that the model made");
  breaks(message(2, {1}, {1, 2}), "(checksum): its ids are not those that the model made");
  StreamGuard ended(kVocabulary);
  ended.check(message(1, {1}, {1}, true));
  CHECK_THROWS(Refused, ended.check(message(2, {2}, {1, 2})), "(end): it comes after the end mark");
  StreamGuard first(kVocabulary);
  const std::string none = "0 message(s) of the stream kept the contract; the next one does not ";
  CHECK_THROWS(Refused, first.check(message(2, {1}, {1})), none + "(index): INDEX is 2; expected 1");
}

}  // namespace
}  // namespace token_stream
