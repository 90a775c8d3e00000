/** What the APIs answer, typed. Engines may add fields: they are there at run time, as they came. */

import type { CacheInfo } from "./cache-info.js";

/** What all answers have beside the fields of their API. */
export interface Answered {
  /** What the shared cache did for the request. */
  readonly cache: CacheInfo;
  /** The text of the answer, of the first one where several were asked for. */
  readonly text: string;
}

/** A call of a tool. In a stream each delta has a piece of it. */
export interface ToolCall {
  /** By which its result is told apart from those of other calls. */
  id?: string | null;
  /** function. */
  type?: string | null;
  /** In a stream: which of the calls this is a piece of. */
  index?: number;
  /** What is called; `arguments` is JSON as the model wrote it: it may be malformed. */
  function: { name?: string | null; arguments?: string | null };
}

/** What the model said; in a stream, a piece of it. */
export interface ChatMessage {
  /** assistant. */
  role?: string | null;
  /** Text; null when it only calls tools. */
  content?: string | null;
  /** Absent, null or empty when it calls none. */
  tool_calls?: ToolCall[] | null;
  /** What it thought before, where the engine tells that apart. */
  reasoning_content?: string | null;
  /** Why it does not answer. */
  refusal?: string | null;
}

/** Tokens of a request, as OpenAI's API counts them. */
export interface Usage {
  /** Of the prompt, cached ones included. */
  prompt_tokens: number;
  /** Of the answer. */
  completion_tokens?: number | null;
  /** Both. */
  total_tokens: number;
  /** `cached_tokens`: those of the prompt that were in a cache. vLLM tells it with --enable-prompt-tokens-details. */
  prompt_tokens_details?: { cached_tokens?: number | null } | null;
}

/** Answers /v1/chat/completions. */
export interface ChatCompletion {
  /** The engine's name for it. */
  id: string;
  /** Who answered. */
  model: string;
  /** When, in s since 1970. */
  created: number;
  /** One for each answer that was asked for. `finish_reason`: stop, length, tool_calls or content_filter. */
  choices: { index: number; message: ChatMessage; finish_reason: string | null; logprobs?: unknown }[];
  /** What it cost. */
  usage?: Usage | null;
}

/** One event of a streamed /v1/chat/completions. */
export interface ChatChunk {
  /** The engine's name for the answer. */
  id: string;
  /** Who answers. */
  model: string;
  /** What is new; empty in the event that has the usage. */
  choices: { index: number; delta: ChatMessage; finish_reason?: string | null; logprobs?: unknown }[];
  /** In the last event, when `stream_options` asks for it. */
  usage?: Usage | null;
}

/** Answers /v1/completions; in a stream, one event of it. */
export interface Completion {
  /** The engine's name for it. */
  id: string;
  /** Who answered. */
  model: string;
  /** When, in s since 1970. */
  created: number;
  /** One for each continuation that was asked for. `finish_reason`: stop or length. */
  choices: { index: number; text: string; finish_reason: string | null; logprobs?: unknown }[];
  /** What it cost; in a stream with the last event, when `stream_options` asks for it. */
  usage?: Usage | null;
}

/** A part of a message in Anthropic's API. Which fields it has, its type says. */
export interface ContentBlock {
  /** text, tool_use, thinking or another one. */
  type: string;
  /** Of text. */
  text?: string | null;
  /** Of tool_use: by which its result is told apart. */
  id?: string | null;
  /** Of tool_use: the tool. */
  name?: string | null;
  /** Of tool_use: what it is called with. */
  input?: Record<string, unknown> | null;
  /** Of thinking. */
  thinking?: string | null;
  /** Of thinking. */
  signature?: string | null;
}

/** Tokens of a request, as Anthropic's API counts them. */
export interface MessageUsage {
  /** Of the prompt, without those of the other two kinds. */
  input_tokens?: number | null;
  /** Of the answer. */
  output_tokens?: number | null;
  /** Those of the prompt that were put into a provider's cache. */
  cache_creation_input_tokens?: number | null;
  /** Those of the prompt that were in a cache; null or absent where the engine does not tell. */
  cache_read_input_tokens?: number | null;
}

/** Answers /v1/messages. */
export interface Message {
  /** The engine's name for it. */
  id: string;
  /** Who answered. */
  model: string;
  /** assistant. */
  role: string;
  /** What the model said. */
  content: ContentBlock[];
  /** end_turn, max_tokens, stop_sequence or tool_use. */
  stop_reason: string | null;
  /** Which one it was. */
  stop_sequence?: string | null;
  /** What it cost. */
  usage?: MessageUsage | null;
}

/** One event of a streamed /v1/messages. Which fields it has, its type says. */
export interface MessageEvent {
  /** message_start, _delta or _stop, content_block_start, _delta or _stop, or ping. */
  type: string;
  /** Of message_start: the message, still without content. */
  message?: Message;
  /** Of content_block_...: which block of the message. */
  index?: number | null;
  /** Of content_block_start. */
  content_block?: ContentBlock | null;
  /** Of content_block_delta and message_delta: what is new in a block, or in the message as a whole. */
  delta?: {
    type?: string | null;
    text?: string | null;
    partial_json?: string | null;
    thinking?: string | null;
    signature?: string | null;
    stop_reason?: string | null;
    stop_sequence?: string | null;
  } | null;
  /** Of message_delta: tokens so far. */
  usage?: MessageUsage | null;
}
