// Both backends as the server sees them, with a stand-in for the server.

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>

#include "cuda_stand_in.h"
#include "json.h"
#include "recorder.h"
#include "triton_stand_in.h"

namespace token_stream {
namespace {

using triton::Answers;
using triton::Call;
using triton::Model;
using triton::Response;

const std::map<std::string, std::string> kStreamParameters{
    {"rung", "latest"}, {"weights", "recipes.safetensors"}, {"tokens", "token_bytes.safetensors"},
    {"default_message_ids", "1000"}, {"hard_message_ids", "5000"}, {"max_streams", "4"}, {"max_waiting", "8"},
    {"grant_seconds", "10"}};
const std::map<std::string, std::string> kTextParameters{{"tokens", "token_bytes.safetensors"}, {"idle_seconds", "15"}};
const std::vector<std::string> kStreamOutputs{"TOKEN_IDS", "INDEX", "STREAM_ID", "END", "CHECKSUM", "HEAP", "ERROR"};

template <typename T>
triton::Input input(const std::vector<T>& values, bool on_gpu = false) {
  const auto* bytes = reinterpret_cast<const char*>(values.data());
  return {{std::string(bytes, values.size() * sizeof(T))}, {static_cast<int64_t>(values.size())}, on_gpu};
}

template <typename T>
std::vector<T> numbers(const triton::Tensor& tensor) {
  std::vector<T> out(tensor.bytes.size() / sizeof(T));
  std::memcpy(out.data(), tensor.bytes.data(), out.size() * sizeof(T));
  return out;
}

std::string text(const triton::Tensor& tensor) {
  uint32_t length = 0;
  std::memcpy(&length, tensor.bytes.data(), 4);
  CHECK_EQUAL(tensor.bytes.size(), 4U + length);
  return tensor.bytes.substr(4);
}

Call forced(const Ids& ids) {
  return {{{"PROMPT_IDS", input(Ids{64})}, {"MAX_TOKENS", input(Ids{1000})}, {"FORCED_IDS", input(ids)}},
          kStreamOutputs, {}};
}

std::map<std::string, std::string> with(std::map<std::string, std::string> parameters, const std::string& name,
                                        const std::string& value) {
  parameters[name] = value;
  return parameters;
}

// Nothing of Triton's is left when it ends, and nothing of CUDA's.
struct NothingLeft {
  size_t gpu = cuda::counts().bytes_held;
  ~NothingLeft() {
    triton::fail("");
    triton::give_gpu_memory(false);
    for (const auto& [kind, count] : triton::left()) CHECK_EQUAL(kind + " " + std::to_string(count), "nothing");
    CHECK_EQUAL(cuda::counts().bytes_held, gpu);
  }
};

Ids ids_of(const Answers& answers) {
  Ids out;
  for (const Response& one : answers.all()) {
    for (const int32_t id : numbers<int32_t>(one.outputs.at("TOKEN_IDS"))) out.push_back(id);
  }
  return out;
}

// What was written to standard error meanwhile.
class Stderr {
 public:
  Stderr() : path_(checking::scratch("stderr")), kept_(dup(2)) {
    std::fflush(stderr);
    FILE* file = std::fopen(path_.c_str(), "w");
    dup2(fileno(file), 2);
    std::fclose(file);
  }
  ~Stderr() { restore(); }
  std::vector<std::string> lines() {
    restore();
    std::vector<std::string> out;
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) out.push_back(line);
    return out;
  }

 private:
  void restore() {
    if (kept_ < 0) return;
    std::fflush(stderr);
    dup2(kept_, 2);
    close(kept_);
    kept_ = -1;
  }

  std::string path_;
  int kept_;
};

// --- token_stream ----------------------------------------------------------------------------------------------------

TEST(a_stream_through_the_backend) {
  const NothingLeft nothing;
  const triton::Reports before = triton::reports();
  Model model(triton::kTokenStream, "node", kStreamParameters);
  CHECK_EQUAL(model.error(), "");
  const auto answers = model.call(forced(reported()));
  answers->await_release();
  CHECK_EQUAL(ids_of(*answers), reported());
  CHECK_EQUAL(answers->ends(), 1U);
  const std::vector<Response> all = answers->all();
  uint32_t checksum = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& outputs = all[i].outputs;
    CHECK_EQUAL(outputs.size(), kStreamOutputs.size());
    CHECK_EQUAL(numbers<int32_t>(outputs.at("INDEX")), (Ids{static_cast<int32_t>(i) + 1}));
    CHECK_EQUAL(numbers<int64_t>(outputs.at("STREAM_ID")), numbers<int64_t>(all[0].outputs.at("STREAM_ID")));
    CHECK_EQUAL(outputs.at("END").bytes, std::string(1, i + 1 == all.size() ? '\1' : '\0'));
    checksum = crc32({reported()[i]}, checksum);
    CHECK_EQUAL(numbers<int64_t>(outputs.at("CHECKSUM")), (std::vector<int64_t>{checksum}));
    CHECK_EQUAL(numbers<int64_t>(outputs.at("HEAP")), (std::vector<int64_t>{kNotTraced}));
    CHECK_EQUAL(text(outputs.at("ERROR")), "");
    CHECK_EQUAL(outputs.at("TOKEN_IDS").dims, (std::vector<int64_t>{1}));
    CHECK(!all[i].final && all[i].error.empty());
  }
  model.unload();
  CHECK_EQUAL(triton::gauge(), 0.0);
  const triton::Reports after = triton::reports();
  CHECK_EQUAL(after.well - before.well, 1U);
  CHECK_EQUAL(after.failed - before.failed, 0U);
  CHECK_EQUAL(after.executions - before.executions, 1U);
  CHECK_EQUAL(after.responses - before.responses, 8U);
  CHECK_EQUAL(after.failed_responses - before.failed_responses, 0U);
  CHECK_EQUAL(after.computed_responses - before.computed_responses, 8U);
}

TEST(a_prompt_and_an_input_in_parts) {
  const NothingLeft nothing;
  Model model(triton::kTokenStream, "node", kStreamParameters);
  const Ids prompt = reference().ids("english.prompt");
  Call call{{{"PROMPT_IDS", input(prompt)}, {"MAX_TOKENS", input(Ids{5})}}, kStreamOutputs, {}};
  const std::string whole = call.inputs["PROMPT_IDS"].parts[0];
  call.inputs["PROMPT_IDS"].parts = {whole.substr(0, 5), "", whole.substr(5)};
  const auto answers = model.call(call);
  answers->await_release();
  const Ids greedy = reference().ids("english.greedy");
  CHECK_EQUAL(ids_of(*answers), Ids(greedy.begin(), greedy.begin() + 5));
}

TEST(only_what_is_asked_for_is_sent) {
  const NothingLeft nothing;
  Model model(triton::kTokenStream, "node", kStreamParameters);
  Call call = forced({64, 65});
  call.outputs = {"END"};
  const auto answers = model.call(call);
  answers->await_release();
  CHECK_EQUAL(answers->all().size(), 2U);
  for (const Response& one : answers->all()) CHECK_EQUAL(one.outputs.size(), 1U);
}

TEST(parameters_of_each_type) {
  const NothingLeft nothing;
  const triton::Reports before = triton::reports();
  Model model(triton::kTokenStream, "node", kStreamParameters);
  const std::vector<std::pair<triton::Parameter, std::string>> bad{
      {triton::parameter("max_message_ids", int64_t{5001}), "is 5001; expected a whole number from 1 to 5,000"},
      {triton::parameter("max_message_ids", 2.5), "is 2.5; expected a whole number"},
      {triton::parameter("guard", "yes"), "is 'yes'; expected true or false"},
      {triton::parameter("window", true), "is True; expected a whole number"},
  };
  for (const auto& [parameter, words] : bad) {
    Call call = forced({64});
    call.parameters = {parameter};
    const auto answers = model.call(call);
    answers->await_release();
    CHECK_EQUAL(answers->all().size(), 1U);
    const std::string error = text(answers->all()[0].outputs.at("ERROR"));
    CHECK_EQUAL(error.find(words) == error.npos ? error : words, words);
    CHECK_EQUAL(answers->all()[0].outputs.at("END").bytes, "\1");
  }
  CHECK_EQUAL(triton::reports().failed - before.failed, bad.size());
}

TEST(a_request_that_lacks_everything) {
  const NothingLeft nothing;
  Model model(triton::kTokenStream, "node", kStreamParameters);
  Call call{{}, kStreamOutputs, {}};
  call.id = nullptr;  // Triton's header allows that
  const auto answers = model.call(call);
  answers->await_release();
  CHECK_EQUAL(text(answers->all().at(0).outputs.at("ERROR")), "MAX_TOKENS is 0; ask for at least 1");
  call.inputs = {{"MAX_TOKENS", {{"abc"}, {1}}}, {"FORCED_IDS", {{"abcdefg"}, {2}}}};  // too few bytes
  const auto cut = model.call(call);
  cut->await_release();
  CHECK_EQUAL(text(cut->all().at(0).outputs.at("ERROR")), "MAX_TOKENS is 0; ask for at least 1");
}

// What the log says of each message: the lines of a node, as JSON.
std::vector<Json> logged(Model& model, const Call& call, std::shared_ptr<Answers>& answers) {
  Stderr written;
  answers = model.call(call);
  answers->await_release();
  std::vector<Json> out;
  for (const std::string& line : written.lines()) out.push_back(Json::parse(line));
  return out;
}

TEST(output_in_the_memory_that_triton_gives) {
  for (const bool gives : {true, false}) {
    const NothingLeft nothing;
    triton::give_gpu_memory(gives);
    Model model(triton::kTokenStream, "node", with(kStreamParameters, "rung", "append"), true);
    Call call = forced(reported());
    call.id = "a \"request\"\n\x01";
    call.parameters = {triton::parameter("log", true)};
    call.inputs["FORCED_IDS"].on_gpu = true;
    std::shared_ptr<Answers> answers;
    const size_t copies = cuda::counts().copies;
    const std::vector<Json> lines = logged(model, call, answers);
    const std::vector<Response> all = answers->all();
    CHECK_EQUAL(lines.size(), 8U);
    CHECK_EQUAL(all.size(), 8U);
    // One input, eight times what is pending, and the outputs that lie there: nobody else may write to a GPU's memory.
    CHECK_EQUAL(cuda::counts().copies - copies, 1U + 8U + (gives ? 8U : 0U));
    for (size_t i = 0; i < all.size() && i < lines.size(); ++i) {
      const auto& tensor = all[i].outputs.at("TOKEN_IDS");
      CHECK_EQUAL(tensor.on_gpu, gives);
      CHECK_EQUAL(numbers<int32_t>(tensor).back(), reported()[i]);
      CHECK_EQUAL(numbers<int32_t>(tensor).size(), size_t{1} << i);
      CHECK(!all[i].outputs.at("INDEX").on_gpu && !all[i].outputs.at("ERROR").on_gpu);
      CHECK_EQUAL(lines[i].at("memory").string(), gives ? "GPU" : "CPU");
      CHECK_EQUAL(lines[i].at("node").string(), "node");
      CHECK_EQUAL(lines[i].at("request_id").string(), call.id);
      CHECK_EQUAL(lines[i].at("index").size(), i + 1);
      CHECK_EQUAL(lines[i].at("dims").array().at(0).size(), size_t{1} << i);
      CHECK_EQUAL(std::get<bool>(lines[i].at("end").value), i == 7);
    }
  }
}

TEST(a_log_on_a_cpu_says_nothing_of_memory) {
  const NothingLeft nothing;
  Model model(triton::kTokenStream, "node", kStreamParameters);
  Call call = forced({64});
  call.parameters = {triton::parameter("log", true)};
  std::shared_ptr<Answers> answers;
  const std::vector<Json> lines = logged(model, call, answers);
  CHECK_EQUAL(lines.size(), 1U);
  CHECK_EQUAL(lines.at(0).object().count("memory"), 0U);
}

TEST(a_gpu_that_fails_under_the_backend) {
  for (const char* function : {"cudaMalloc", "cudaMemcpy", "cudaStreamSynchronize"}) {
    const NothingLeft nothing;
    Model model(triton::kTokenStream, "node", with(kStreamParameters, "rung", "append"), true);
    cuda::fail(function);
    const auto answers = model.call(forced(reported()));
    answers->await_release();
    cuda::fail("");
    const std::string error = text(answers->all().back().outputs.at("ERROR"));
    CHECK(error.find(std::string("internal error: ") + function + " on GPU 0: ") == 0);
    const auto well = model.call(forced({64}));
    well->await_release();
    CHECK_EQUAL(text(well->all().back().outputs.at("ERROR")), "");
  }
  const NothingLeft nothing;
  cuda::fail("cudaSetDevice");
  const Model model(triton::kTokenStream, "node", kStreamParameters, true);
  cuda::fail("");
  CHECK_EQUAL(model.error(), "cudaSetDevice on GPU 0: invalid device ordinal");
}

// Each function of the API that can fail in the middle of a stream. The request is released, whatever fails.
TEST(triton_refuses) {
  for (const char* function :
       {"TRITONBACKEND_ResponseFactoryNew", "TRITONBACKEND_ResponseNewFromFactory", "TRITONBACKEND_ResponseOutput",
        "TRITONBACKEND_OutputBuffer", "TRITONBACKEND_ResponseSend", "TRITONBACKEND_ResponseFactorySendFlags",
        "TRITONBACKEND_ResponseFactoryIsCancelled", "TRITONBACKEND_RequestParameter", "TRITONBACKEND_InputBuffer",
        "TRITONBACKEND_ModelInstanceResponseStatisticsNew", "TRITONBACKEND_ModelInstanceReportResponseStatistics"}) {
    const NothingLeft nothing;
    Model model(triton::kTokenStream, "node", kStreamParameters);
    Call call = forced(reported());
    call.parameters = {triton::parameter("trace_heap", true)};
    triton::fail(function);
    const auto refused = model.call(call);
    refused->await_release();
    triton::fail("");
    const auto well = model.call(call);
    well->await_release();
    CHECK_EQUAL(ids_of(*well), reported());
    CHECK_EQUAL(well->ends(), 1U);
  }
}

TEST(loading_that_fails) {
  for (const char* function : {"TRITONBACKEND_ModelConfig", "TRITONSERVER_MessageSerializeToJson",
                               "TRITONBACKEND_ModelSetState", "TRITONBACKEND_ModelInstanceSetState"}) {
    const NothingLeft nothing;
    triton::fail(function);
    const Model model(triton::kTokenStream, "node", kStreamParameters);
    CHECK_EQUAL(model.error(), "the stand-in refuses");
  }
  const std::vector<std::vector<std::string>> bad{
      {"rung", "next", "\"rung\" is \"next\""},
      {"weights", "none", "none: it cannot be opened"},
      {"weights", "token_bytes.safetensors", "metadata \"config\" is missing"},
      {"tokens", "recipes.safetensors", "tensor \"data\" is missing"},
      {"max_streams", "-1", "model parameter \"max_streams\" is \"-1\"; expected a whole number"},
      {"max_streams", "0", "expected a whole number from 1 to 1000000"},
      {"default_message_ids", "5001", "expected a whole number from 1 to 5000"},
      {"max_waiting", "", "model parameter \"max_waiting\" is \"\"; expected a whole number"},
      {"hard_message_ids", "12345678901234567890", "expected a whole number"}};
  for (const auto& one : bad) {
    const NothingLeft nothing;
    const Model model(triton::kTokenStream, "node", with(kStreamParameters, one[0], one[1]));
    CHECK_EQUAL(model.error().find(one[2]) == std::string::npos ? model.error() : one[2], one[2]);
  }
  const NothingLeft nothing;
  const Model model(triton::kTokenStream, "node", {{"rung", "latest"}});
  CHECK_EQUAL(model.error(), "model parameter \"tokens\" is missing in config.pbtxt");
}

TEST(a_server_of_another_version) {
  const NothingLeft nothing;
  for (const triton::Backend* backend : {&triton::kTokenStream, &triton::kTokenText}) {
    triton::say_version(TRITONBACKEND_API_VERSION_MAJOR, TRITONBACKEND_API_VERSION_MINOR - 1);
    CHECK(Model(*backend, "node", kStreamParameters).error().find("this server has backend API 1.") == 0);
    triton::say_version(TRITONBACKEND_API_VERSION_MAJOR + 1, TRITONBACKEND_API_VERSION_MINOR);
    CHECK(Model(*backend, "node", kStreamParameters).error().find("this server has backend API 2.") == 0);
    triton::say_version(TRITONBACKEND_API_VERSION_MAJOR, TRITONBACKEND_API_VERSION_MINOR + 5);
    CHECK_EQUAL(Model(*backend, "node", with(kStreamParameters, "idle_seconds", "1")).error(), "");
  }
  triton::say_version(TRITONBACKEND_API_VERSION_MAJOR, TRITONBACKEND_API_VERSION_MINOR);
}

TEST(a_server_without_metrics) {
  for (const char* function : {"TRITONSERVER_MetricFamilyNew", "TRITONSERVER_MetricNew"}) {
    const NothingLeft nothing;
    triton::fail(function);
    Model model(triton::kTokenStream, "node", kStreamParameters);
    CHECK_EQUAL(model.error(), "");
    const auto answers = model.call(forced({64}));
    answers->await_release();
    CHECK_EQUAL(ids_of(*answers), (Ids{64}));
  }
}

TEST(unloading_in_the_middle) {
  const NothingLeft nothing;
  Model model(triton::kTokenStream, "node", kStreamParameters);
  std::vector<std::shared_ptr<Answers>> open;
  for (int64_t key = 1; key <= 3; ++key) {
    Call call = forced(reported());
    call.parameters = {triton::parameter("window", int64_t{2}), triton::parameter("window_key", key)};
    open.push_back(model.call(call));
    open.back()->await_count(2);
  }
  model.unload();
  for (const auto& answers : open) {
    CHECK_EQUAL(text(answers->all().back().outputs.at("ERROR")), "internal error: the model was unloaded");
    CHECK_EQUAL(answers->ends(), 1U);
  }
}

TEST(a_cancelled_request) {
  const NothingLeft nothing;
  Model model(triton::kTokenStream, "node", kStreamParameters);
  Call call = forced(reported());
  call.parameters = {triton::parameter("window", int64_t{2}), triton::parameter("window_key", int64_t{1})};
  const auto answers = model.call(call);
  answers->await_count(2);
  answers->cancel();
  answers->await_release();
  CHECK_EQUAL(answers->all().size(), 2U);
  CHECK_EQUAL(answers->ends(), 1U);
}

// --- token_text ------------------------------------------------------------------------------------------------------

Call message(const Ids& ids, int64_t stream, bool end) {
  return {{{"TOKEN_IDS", input(ids)}, {"STREAM_ID", input(std::vector<int64_t>{stream})},
           {"END", input(std::vector<char>{static_cast<char>(end)})}}, {"TEXT", "RECEIVED_IDS", "RECEIVED_DIMS"}, {}};
}

Response answer(Model& model, const Call& call) {
  const auto answers = model.call(call);
  answers->await_release();
  CHECK_EQUAL(answers->all().size(), 1U);
  CHECK_EQUAL(answers->ends(), 1U);
  return answers->all().at(0);
}

TEST(a_text_through_the_backend) {
  const NothingLeft nothing;
  const triton::Reports before = triton::reports();
  Model model(triton::kTokenText, "text", kTextParameters);
  CHECK_EQUAL(model.error(), "");
  std::string whole, expected;
  const TokenBytes tokens(checking::file("models/token_stream_latest/token_bytes.safetensors"));
  for (size_t i = 0; i < reported().size(); ++i) {
    const Response response = answer(model, message({reported()[i]}, 7, i == 7));
    CHECK_EQUAL(response.error, "");
    whole += text(response.outputs.at("TEXT"));
    expected += tokens[reported()[i]];
    CHECK_EQUAL(numbers<int32_t>(response.outputs.at("RECEIVED_IDS")), (Ids{reported()[i]}));
    CHECK_EQUAL(numbers<int64_t>(response.outputs.at("RECEIVED_DIMS")), (std::vector<int64_t>{1}));
  }
  CHECK_EQUAL(whole.find(expected.substr(0, 9)), 0U);
  model.unload();
  CHECK_EQUAL(triton::reports().well - before.well, 8U);
  CHECK_EQUAL(triton::reports().executions - before.executions, 8U);
}

TEST(messages_that_the_text_node_refuses) {
  const NothingLeft nothing;
  const triton::Reports before = triton::reports();
  Model model(triton::kTokenText, "text", kTextParameters);
  answer(model, message({8908}, 7, false));  // it holds the beginning of a character now
  CHECK_EQUAL(answer(model, message({-1}, 7, false)).error,
              "token id -1 at position 0 is not in the vocabulary (0 to 151,642)");
  CHECK_EQUAL(text(answer(model, message({64}, 7, true)).outputs.at("TEXT")), "a");  // and has forgotten it
  for (const char* name : {"TOKEN_IDS", "STREAM_ID", "END"}) {
    Call call = message({64}, 8, true);
    call.inputs.erase(name);
    CHECK_EQUAL(answer(model, call).error, std::string(name) + " is missing");
  }
  Call empty = message({64}, 8, true);
  empty.inputs["END"] = {{}, {0}};
  CHECK_EQUAL(answer(model, empty).error, "END is missing");
  CHECK_EQUAL(text(answer(model, message({}, 9, true)).outputs.at("TEXT")), "");
  CHECK_EQUAL(triton::reports().failed - before.failed, 5U);
}

TEST(options_of_the_text_node) {
  const NothingLeft nothing;
  Model model(triton::kTokenText, "text", kTextParameters);
  Call call = message({64, 65}, 8, true);
  call.outputs = {"RECEIVED_DIMS", "RECEIVED_IDS"};
  call.id = nullptr;
  call.parameters = {triton::parameter("other", 1.0), triton::parameter("dims_only", true),
                     triton::parameter("log", true)};
  std::shared_ptr<Answers> answers;
  const std::vector<Json> lines = logged(model, call, answers);
  CHECK_EQUAL(lines.size(), 1U);
  CHECK_EQUAL(lines.at(0).at("stream_id").size(), 8U);
  CHECK_EQUAL(lines.at(0).at("request_id").string(), "");
  CHECK(std::holds_alternative<std::nullptr_t>(lines.at(0).at("index").value));
  const auto outputs = answers->all().at(0).outputs;
  CHECK_EQUAL(outputs.size(), 2U);
  CHECK_EQUAL(outputs.at("RECEIVED_IDS").bytes, "");
  CHECK_EQUAL(numbers<int64_t>(outputs.at("RECEIVED_DIMS")), (std::vector<int64_t>{2}));
}

TEST(triton_refuses_the_text_node) {
  for (const char* function : {"TRITONBACKEND_ResponseNew", "TRITONBACKEND_ResponseOutput",
                               "TRITONBACKEND_OutputBuffer", "TRITONBACKEND_ResponseSend",
                               "TRITONBACKEND_InputBuffer"}) {
    const NothingLeft nothing;
    Model model(triton::kTokenText, "text", kTextParameters);
    triton::fail(function);
    model.call(message({64}, 7, true))->await_release();
    triton::fail("");
    CHECK_EQUAL(text(answer(model, message({64}, 7, true)).outputs.at("TEXT")), "a");
  }
}

}  // namespace
}  // namespace token_stream
