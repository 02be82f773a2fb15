// The backend `token_stream`: the inference node. What a stream is and does is in the other files of this folder, which
// know nothing of Triton.

#include <utility>

#include "token_stream/engine.h"
#include "triton.h"

namespace token_stream {
namespace {

constexpr int64_t kMostStreams = 1'000'000;

// Sends the responses of one request, and keeps the request until the last one has been sent: so Triton counts it as open
// for exactly as long as it is, and its trace has all that was sent for it.
class TritonSender : public Sender {
 public:
  TritonSender(const Place& place, TRITONBACKEND_Request* request) : place_(place), request_(request) {
    wanted_ = requested_outputs(request);
    check(TRITONBACKEND_ResponseFactoryNew(&factory_, request));
  }

  // The factory goes before the request that it was made from. A stream that something kept from its regular end is
  // ended here: otherwise its client would wait for good.
  ~TritonSender() override {
    if (!finished_) finish();
    tolerate(TRITONBACKEND_ResponseFactoryDelete(factory_), "delete a response factory");
    tolerate(TRITONBACKEND_RequestRelease(request_, TRITONSERVER_REQUEST_RELEASE_ALL), "release a request");
  }

  Memory send(const Message& message, const std::string& error, int64_t heap) override {
    const uint64_t output_began = now_ns();
    TRITONBACKEND_Response* response = nullptr;
    check(TRITONBACKEND_ResponseNewFromFactory(&response, factory_));
    bool on_gpu = false;
    try {
      on_gpu = fill(response, message, error, heap);
    } catch (...) {
      tolerate(TRITONBACKEND_ResponseDelete(response), "delete a response");
      throw;
    }
    check(TRITONBACKEND_ResponseSend(response, 0, nullptr));
    failed_ = failed_ || !error.empty();
    report(output_began, error);
    return on_gpu ? Memory::kGpu : Memory::kCpu;
  }

  void finish() override {
    finished_ = true;
    tolerate(TRITONBACKEND_ResponseFactorySendFlags(factory_, TRITONSERVER_RESPONSE_COMPLETE_FINAL), "end a stream");
    const uint64_t now = now_ns();
    tolerate(TRITONBACKEND_ModelInstanceReportStatistics(place_.instance, request_, !failed_, began_, began_, now, now),
             "report a request");
    tolerate(TRITONBACKEND_ModelInstanceReportBatchStatistics(place_.instance, 1, began_, began_, now, now),
             "report an execution");
  }

  bool cancelled() override {
    bool cancelled = false;
    check(TRITONBACKEND_ResponseFactoryIsCancelled(factory_, &cancelled));
    return cancelled;
  }

 private:
  // Says whether the ids lie in the GPU's memory.
  bool fill(TRITONBACKEND_Response* response, const Message& message, const std::string& error, int64_t heap) const {
    const std::string text = element(error);
    bool on_gpu = false;
    const auto put_wanted = [&](const Output& output, const Place* on_device = nullptr) {
      return wanted_.count(output.name) > 0 && put(response, output, on_device);
    };
    on_gpu = put_wanted(output("TOKEN_IDS", message.ids), &place_);
    put_wanted(output("INDEX", std::vector<int32_t>{message.index}));
    put_wanted(output("STREAM_ID", std::vector<int64_t>{message.stream_id}));
    put_wanted({"END", TRITONSERVER_TYPE_BOOL, {1}, &message.end, sizeof message.end});
    put_wanted(output("CHECKSUM", std::vector<int64_t>{message.checksum}));
    put_wanted(output("HEAP", std::vector<int64_t>{heap}));
    put_wanted({"ERROR", TRITONSERVER_TYPE_BYTES, {1}, text.data(), text.size()});
    return on_gpu;
  }

  // What the server's statistics show under "response_stats": one entry for each response of a request. It was computed
  // from the end of the response before it until its output began.
  void report(uint64_t output_began, const std::string& error) {
    const auto set = [](TRITONSERVER_Error* failure) { tolerate(failure, "report a response"); };
    const uint64_t computing_began = std::exchange(reported_, now_ns());
    TRITONBACKEND_ModelInstanceResponseStatistics* statistics = nullptr;
    set(TRITONBACKEND_ModelInstanceResponseStatisticsNew(&statistics));
    if (statistics == nullptr) return;
    set(TRITONBACKEND_ModelInstanceResponseStatisticsSetModelInstance(statistics, place_.instance));
    set(TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseFactory(statistics, factory_));
    set(TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseStart(statistics, computing_began));
    set(TRITONBACKEND_ModelInstanceResponseStatisticsSetComputeOutputStart(statistics, output_began));
    set(TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseEnd(statistics, reported_));
    TRITONSERVER_Error* failed =
        error.empty() ? nullptr : TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INVALID_ARG, error.c_str());
    if (failed != nullptr) set(TRITONBACKEND_ModelInstanceResponseStatisticsSetError(statistics, failed));
    set(TRITONBACKEND_ModelInstanceReportResponseStatistics(statistics));
    set(TRITONBACKEND_ModelInstanceResponseStatisticsDelete(statistics));
    if (failed != nullptr) TRITONSERVER_ErrorDelete(failed);
  }

  const Place& place_;
  TRITONBACKEND_Request* request_;
  TRITONBACKEND_ResponseFactory* factory_ = nullptr;
  std::set<std::string> wanted_;
  uint64_t began_ = now_ns();
  uint64_t reported_ = began_;  // when the response before this one was sent
  bool failed_ = false, finished_ = false;
};

// --- requests ---------------------------------------------------------------------------------------------------------

std::optional<Ids> read_ids(TRITONBACKEND_Request* request, const char* name) {
  const std::optional<Input> input = read_input(request, name);
  if (!input) return std::nullopt;
  return values<int32_t>(*input);
}

void read_request(TRITONBACKEND_Request* from, const Limits& limits, Request& to) {
  const char* id = nullptr;
  check(TRITONBACKEND_RequestId(from, &id));
  to.id = id == nullptr ? "" : id;
  to.options = read_options(read_parameters(from), limits);
  to.prompt = read_ids(from, "PROMPT_IDS").value_or(Ids{});
  to.forced = read_ids(from, "FORCED_IDS");
  const Ids max_tokens = read_ids(from, "MAX_TOKENS").value_or(Ids{});
  to.max_tokens = max_tokens.empty() ? 0 : max_tokens.front();
}

// --- instances --------------------------------------------------------------------------------------------------------

Limits read_limits(const ModelParameters& parameters) {
  const int64_t hard = parameters.number("hard_message_ids", 1);
  return {parameters.number("default_message_ids", 1, hard), hard,
          static_cast<size_t>(parameters.number("max_streams", 1, kMostStreams)),
          static_cast<size_t>(parameters.number("max_waiting", 0, kMostStreams)),
          static_cast<double>(parameters.number("grant_seconds", 1))};
}

// Both files are the user's to name: every id that the model can say must be in the table of tokens. The end token is
// never said.
Transformer load_transformer(const std::string& path, const TokenBytes& tokens) {
  Transformer transformer(path);
  for (size_t row = 1; row < transformer.rows(); ++row) {
    const int32_t id = transformer.id(static_cast<int>(row));
    if (id != transformer.eos() && (id < 0 || static_cast<size_t>(id) >= tokens.size())) {
      throw std::runtime_error("weights file " + path + ": token id " + std::to_string(id) +
                               " is not in the table of tokens. Name two files that belong together");
    }
  }
  return transformer;
}

// One instance of a model: its weights, its streams, and the thread that moves them on.
class Instance {
 public:
  Instance(TRITONBACKEND_Model* model, TRITONBACKEND_ModelInstance* instance, const ModelParameters& parameters)
      : place_(find_place(instance)),
        node_{model_name(model),
              &find_rung(parameters.text("rung")),
              TokenBytes(model_file(model, parameters, "tokens")),
              read_limits(parameters),
              place_.device.get(),
              Buffer(place_.device.get())},
        transformer_(load_transformer(model_file(model, parameters, "weights"), node_.tokens)),
        gauge_(model, instance),
        engine_(
            node_, transformer_, [](const std::string& text) { log(TRITONSERVER_LOG_ERROR, "token_stream: " + text); },
            [this](size_t streams) { gauge_.set(streams); }) {}

  void execute(TRITONBACKEND_Request* from) {
    Request request;
    try {
      request.sender = std::make_unique<TritonSender>(place_, from);
    } catch (const std::exception& failure) {  // without a factory, an error in place of a stream
      answer_with_error(from, failure.what());
      throw;
    }
    std::string error;
    try {
      read_request(from, node_.limits, request);
    } catch (const std::exception& failure) {
      error = failure.what();
    }
    if (error.empty()) {
      engine_.submit(std::move(request));
    } else {
      engine_.refuse(std::move(request), error);
    }
  }

 private:
  Place place_;
  Node node_;
  Transformer transformer_;
  StreamGauge gauge_;
  Engine engine_;  // last: it ends first, while all that its streams use is there
};

}  // namespace
}  // namespace token_stream

// --- what Triton calls ------------------------------------------------------------------------------------------------

#include "entry_points.h"

extern "C" {

// Hands the requests over and returns: the responses come from the engine's thread. An error would hand all requests back
// to Triton, also those that were taken: so a request that cannot be taken is only written down.
TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                                           TRITONBACKEND_Request** requests,
                                                                           const uint32_t request_count) {
  return guarded([&] {
    auto* made = held_by<Instance>(TRITONBACKEND_ModelInstanceState, instance);
    for (uint32_t i = 0; i < request_count; ++i) {
      tolerate(guarded([&] { made->execute(requests[i]); }), "take a request");
    }
  });
}

}  // extern "C"
