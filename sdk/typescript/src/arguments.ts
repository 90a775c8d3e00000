/** What calls take. `checks` has the checks of it. */

/** An object as JSON has it. */
export type Json = { readonly [name: string]: unknown };

/** A text that requests share. */
export interface Document {
  /** What the model reads. */
  text: string;
  /** Printed before the text. */
  title?: string;
  /** Anthropic's wish to keep everything up to here: `{ type: "ephemeral", ttl: "1h" }`. */
  cache_control?: Json;
}

/** What every call takes beside the fields of its API. */
export interface CallOptions {
  /** Your name for the conversation, for this call; the client's otherwise. */
  session?: string;
  /** As the client's, for this call. */
  timeoutMs?: number;
  /** As the client's, for this call. */
  retriesMax?: number;
  /** More headers. */
  headers?: Readonly<Record<string, string>>;
  /** More fields of the body: those of your engine that the API does not have, such as `cache_salt`. */
  extraBody?: Json;
  /** Ends the request, in the engine, too. */
  signal?: AbortSignal;
}

/** What both APIs with messages take. */
export interface PromptArguments {
  model: string;
  messages: readonly Json[];
  /** System text, or parts of it. */
  system?: string | readonly Json[];
  /** In the form of the API. */
  tools?: readonly Json[];
  /**
   * Texts that requests share. They are sent in an order of their own, without doubles, as one message before yours, so
   * that equal sets of them begin equal prompts; and the router is told which message that is.
   */
  documents?: readonly (string | Document)[];
  temperature?: number;
  top_p?: number;
  metadata?: Json;
}

/** What messages.create takes with Anthropic's API. */
export interface MessageArguments extends PromptArguments {
  max_tokens: number;
  top_k?: number;
  stop_sequences?: readonly string[];
  tool_choice?: Json;
  thinking?: Json;
}

/** What chat.completions.create takes; with OpenAI's API messages.create, too. */
export interface ChatArguments extends PromptArguments {
  max_tokens?: number;
  max_completion_tokens?: number;
  tool_choice?: string | Json;
  parallel_tool_calls?: boolean;
  n?: number;
  seed?: number;
  stop?: string | readonly string[];
  logprobs?: boolean;
  top_logprobs?: number;
  logit_bias?: Readonly<Record<string, number>>;
  presence_penalty?: number;
  frequency_penalty?: number;
  response_format?: Json;
  reasoning_effort?: string;
  stream_options?: Json;
  user?: string;
  prompt_cache_key?: string;
}

/** What completions.create takes. */
export interface CompletionArguments {
  model: string;
  /** Text, or token ids, or several of either. */
  prompt: string | readonly number[] | readonly string[] | readonly (readonly number[])[];
  suffix?: string;
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  n?: number;
  seed?: number;
  stop?: string | readonly string[];
  echo?: boolean;
  logprobs?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  stream_options?: Json;
  user?: string;
  metadata?: Json;
}

/** The names of some arguments, and whether each is required. */
export type Names<Given> = { readonly [Name in keyof Required<Given>]: boolean };

const PROMPT_NAMES: Names<PromptArguments> = {
  model: true,
  messages: true,
  system: false,
  tools: false,
  documents: false,
  temperature: false,
  top_p: false,
  metadata: false,
};

export const MESSAGE_NAMES: Names<MessageArguments> = {
  ...PROMPT_NAMES,
  max_tokens: true,
  top_k: false,
  stop_sequences: false,
  tool_choice: false,
  thinking: false,
};

export const CHAT_NAMES: Names<ChatArguments> = {
  ...PROMPT_NAMES,
  max_tokens: false,
  max_completion_tokens: false,
  tool_choice: false,
  parallel_tool_calls: false,
  n: false,
  seed: false,
  stop: false,
  logprobs: false,
  top_logprobs: false,
  logit_bias: false,
  presence_penalty: false,
  frequency_penalty: false,
  response_format: false,
  reasoning_effort: false,
  stream_options: false,
  user: false,
  prompt_cache_key: false,
};

export const COMPLETION_NAMES: Names<CompletionArguments> = {
  model: true,
  prompt: true,
  suffix: false,
  max_tokens: false,
  temperature: false,
  top_p: false,
  n: false,
  seed: false,
  stop: false,
  echo: false,
  logprobs: false,
  presence_penalty: false,
  frequency_penalty: false,
  stream_options: false,
  user: false,
  metadata: false,
};

export const CALL_OPTION_NAMES: Names<CallOptions> = {
  session: false,
  timeoutMs: false,
  retriesMax: false,
  headers: false,
  extraBody: false,
  signal: false,
};
