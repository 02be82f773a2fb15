// The backend `token_stream`: the inference node. What a stream is and does is in the other files of this folder, which
// know nothing of Triton.

#include <set>

#include "token_stream/engine.h"
#include "triton.h"

namespace token_stream {
namespace {

// Sends the responses of one request, and keeps the request until the last one has been sent: so Triton counts it as open
// for exactly as long as it is, and its trace has all that was sent for it.
class TritonSender : public Sender {
 public:
  TritonSender(const Place& place, TRITONBACKEND_Request* request) : place_(place), request_(request) {
    for (std::string& name : requested_outputs(request)) wanted_.insert(std::move(name));
    check(TRITONBACKEND_ResponseFactoryNew(&factory_, request));
  }

  // The factory goes before the request that it was made from.
  ~TritonSender() override {
    tolerate(TRITONBACKEND_ResponseFactoryDelete(factory_), "delete a response factory");
    tolerate(TRITONBACKEND_RequestRelease(request_, TRITONSERVER_REQUEST_RELEASE_ALL), "release a request");
  }

  Memory send(const Message& message, const std::string& error, int64_t heap) override {
    const uint64_t began = now_ns();
    TRITONBACKEND_Response* response = nullptr;
    check(TRITONBACKEND_ResponseNewFromFactory(&response, factory_));
    bool on_gpu = false;
    try {
      on_gpu = fill(response, message, error, heap);
    } catch (...) {
      tolerate(TRITONBACKEND_ResponseDelete(response), "delete a response");
      throw;
    }
    const uint64_t filled = now_ns();
    check(TRITONBACKEND_ResponseSend(response, 0, nullptr));
    report(began, filled);
    failed_ = failed_ || !error.empty();
    return on_gpu ? Memory::kGpu : Memory::kCpu;
  }

  void finish() override {
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

  // What the server's statistics show under "response_stats": one entry for each response of a request.
  void report(uint64_t began, uint64_t filled) const {
    TRITONBACKEND_ModelInstanceResponseStatistics* statistics = nullptr;
    check(TRITONBACKEND_ModelInstanceResponseStatisticsNew(&statistics));
    const auto set = [](TRITONSERVER_Error* error) { tolerate(error, "report a response"); };
    set(TRITONBACKEND_ModelInstanceResponseStatisticsSetModelInstance(statistics, place_.instance));
    set(TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseFactory(statistics, factory_));
    set(TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseStart(statistics, began));
    set(TRITONBACKEND_ModelInstanceResponseStatisticsSetComputeOutputStart(statistics, filled));
    set(TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseEnd(statistics, now_ns()));
    set(TRITONBACKEND_ModelInstanceReportResponseStatistics(statistics));
    set(TRITONBACKEND_ModelInstanceResponseStatisticsDelete(statistics));
  }

  const Place& place_;
  TRITONBACKEND_Request* request_;
  TRITONBACKEND_ResponseFactory* factory_ = nullptr;
  std::set<std::string> wanted_;
  uint64_t began_ = now_ns();
  bool failed_ = false;
};

// --- requests ---------------------------------------------------------------------------------------------------------

Parameters read_parameters(TRITONBACKEND_Request* request) {
  Parameters parameters;
  uint32_t count = 0;
  check(TRITONBACKEND_RequestParameterCount(request, &count));
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    const void* value = nullptr;
    TRITONSERVER_ParameterType type{};
    check(TRITONBACKEND_RequestParameter(request, i, &name, &type, &value));
    if (type == TRITONSERVER_PARAMETER_BOOL) {
      parameters[name] = *static_cast<const bool*>(value);
    } else if (type == TRITONSERVER_PARAMETER_INT) {
      parameters[name] = *static_cast<const int64_t*>(value);
    } else if (type == TRITONSERVER_PARAMETER_DOUBLE) {
      parameters[name] = *static_cast<const double*>(value);
    } else if (type == TRITONSERVER_PARAMETER_STRING) {
      parameters[name] = std::string(static_cast<const char*>(value));
    }
  }
  return parameters;
}

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
  const auto size = [&](const char* name) { return static_cast<size_t>(parameters.number(name)); };
  return {parameters.number("default_message_ids"), parameters.number("hard_message_ids"), size("max_streams"),
          size("max_waiting"), static_cast<double>(parameters.number("grant_seconds"))};
}

// One instance of a model: its weights, its streams, and the thread that moves them on.
class Instance {
 public:
  Instance(TRITONBACKEND_Model* model, TRITONBACKEND_ModelInstance* instance, const ModelParameters& parameters)
      : place_(find_place(instance)),
        transformer_(model_file(model, parameters, "weights")),
        node_{model_name(model),
              &find_rung(parameters.text("rung")),
              TokenBytes(model_file(model, parameters, "tokens")),
              read_limits(parameters),
              place_.device.get(),
              Buffer(place_.device.get())},
        gauge_(model, instance),
        engine_(
            node_, transformer_, [](const std::string& text) { log(TRITONSERVER_LOG_ERROR, "token_stream: " + text); },
            [this](size_t streams) { gauge_.set(streams); }) {}

  void execute(TRITONBACKEND_Request* from) {
    Request request;
    try {
      request.sender = std::make_unique<TritonSender>(place_, from);
    } catch (...) {
      tolerate(TRITONBACKEND_RequestRelease(from, TRITONSERVER_REQUEST_RELEASE_ALL), "release a request");
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
  Transformer transformer_;
  Node node_;
  StreamGauge gauge_;
  Engine engine_;  // last: it ends first, while all that its streams use is there
};

}  // namespace
}  // namespace token_stream

// --- what Triton calls ------------------------------------------------------------------------------------------------

using namespace token_stream;

extern "C" {

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend* /*backend*/) {
  return guarded(check_api_version);
}

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return guarded([&] { hand_over(TRITONBACKEND_ModelSetState, model, std::make_unique<ModelParameters>(model)); });
}

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return guarded([&] { delete held_by<ModelParameters>(TRITONBACKEND_ModelState, model); });
}

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    const auto* parameters = held_by<ModelParameters>(TRITONBACKEND_ModelState, model);
    hand_over(TRITONBACKEND_ModelInstanceSetState, instance, std::make_unique<Instance>(model, instance, *parameters));
  });
}

TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] { delete held_by<Instance>(TRITONBACKEND_ModelInstanceState, instance); });
}

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
