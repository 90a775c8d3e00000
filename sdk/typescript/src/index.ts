/** A client of GhostCacher's router. */

export * from "./admin-types.js";
export { Admin, type FlushTarget } from "./admin.js";
export type * from "./answers.js";
export type {
  CallOptions,
  ChatArguments,
  CompletionArguments,
  Document,
  Json,
  MessageArguments,
  PromptArguments,
} from "./arguments.js";
export type { CacheInfo } from "./cache-info.js";
export type { PromptRequest } from "./calls.js";
export { GhostCacherClient, type MessagesOf } from "./client.js";
export {
  AnswerBroken,
  AnswerMalformed,
  AnswerTimeout,
  ArgumentError,
  ConnectFailed,
  GhostCacherError,
  StatusError,
} from "./errors.js";
export type { ClientOptions, Provider } from "./options.js";
export type { AnthropicMessages, ChatCompletions, Completions } from "./resources.js";
export { Stream } from "./streams.js";
