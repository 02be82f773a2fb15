"""The configurations of the capstone's pipeline. They are the same for every fault."""

ENCODE = """name: "encode"
backend: "python"
max_batch_size: 0
input [ { name: "PROMPT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "PROMPT_IDS" data_type: TYPE_INT32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""

GENERATE = """name: "generate"
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [
  { name: "PROMPT_IDS" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "MAX_TOKENS" data_type: TYPE_INT32 dims: [ 1 ] }
]
output [
  { name: "TOKEN_IDS" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "INDEX" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "STREAM_ID" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "END" data_type: TYPE_BOOL dims: [ 1 ] },
  { name: "ERROR" data_type: TYPE_STRING dims: [ 1 ] }
]
instance_group [ { kind: KIND_CPU count: 4 } ]
"""

DECODE = """name: "decode"
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [
  { name: "TOKEN_IDS" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "INDEX" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "STREAM_ID" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "END" data_type: TYPE_BOOL dims: [ 1 ] },
  { name: "ERROR" data_type: TYPE_STRING dims: [ 1 ] }
]
output [
  { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "RECEIVED_IDS" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "RECEIVED_DIMS" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "RECEIVED_INDEX" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "RECEIVED_END" data_type: TYPE_BOOL dims: [ 1 ] },
  { name: "RECEIVED_ERROR" data_type: TYPE_STRING dims: [ 1 ] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""

TALK = """name: "talk"
platform: "ensemble"
max_batch_size: 0
input [
  { name: "PROMPT" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "MAX_TOKENS" data_type: TYPE_INT32 dims: [ 1 ] }
]
output [
  { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "RECEIVED_IDS" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "RECEIVED_DIMS" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "INDEX" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "END" data_type: TYPE_BOOL dims: [ 1 ] },
  { name: "ERROR" data_type: TYPE_STRING dims: [ 1 ] }
]
ensemble_scheduling {
  step [
    {
      model_name: "encode"
      model_version: -1
      input_map { key: "PROMPT" value: "PROMPT" }
      output_map { key: "PROMPT_IDS" value: "PROMPT_IDS" }
    },
    {
      model_name: "generate"
      model_version: -1
      input_map { key: "PROMPT_IDS" value: "PROMPT_IDS" }
      input_map { key: "MAX_TOKENS" value: "MAX_TOKENS" }
      output_map { key: "TOKEN_IDS" value: "GENERATED_IDS" }
      output_map { key: "INDEX" value: "GENERATED_INDEX" }
      output_map { key: "STREAM_ID" value: "STREAM_ID" }
      output_map { key: "END" value: "GENERATED_END" }
      output_map { key: "ERROR" value: "GENERATED_ERROR" }
    },
    {
      model_name: "decode"
      model_version: -1
      input_map { key: "TOKEN_IDS" value: "GENERATED_IDS" }
      input_map { key: "INDEX" value: "GENERATED_INDEX" }
      input_map { key: "STREAM_ID" value: "STREAM_ID" }
      input_map { key: "END" value: "GENERATED_END" }
      input_map { key: "ERROR" value: "GENERATED_ERROR" }
      output_map { key: "TEXT" value: "TEXT" }
      output_map { key: "RECEIVED_IDS" value: "RECEIVED_IDS" }
      output_map { key: "RECEIVED_DIMS" value: "RECEIVED_DIMS" }
      output_map { key: "RECEIVED_INDEX" value: "INDEX" }
      output_map { key: "RECEIVED_END" value: "END" }
      output_map { key: "RECEIVED_ERROR" value: "ERROR" }
    }
  ]
}
"""

CONFIGS = {"encode": ENCODE, "generate": GENERATE, "decode": DECODE, "talk": TALK}
