/** The client. */

import { Admin } from "./admin.js";
import { CHAT, COMPLETIONS, MESSAGES } from "./calls.js";
import type { ClientOptions, Provider } from "./options.js";
import { checked } from "./options.js";
import type { AnthropicMessages, ChatCompletions, Completions } from "./resources.js";
import { Resource } from "./resources.js";

/** What `messages` is, by the provider whose API it speaks. */
export type MessagesOf<P extends Provider> = P extends "anthropic" ? AnthropicMessages : ChatCompletions;

/** A client of one router. It holds no connection that has to be closed. */
export class GhostCacherClient<P extends Provider = Provider> {
  /** The provider's API, with system text, tools, documents and messages. */
  readonly messages: MessagesOf<P>;
  /** OpenAI's API /v1/chat/completions, whichever the provider is. */
  readonly chat: { readonly completions: ChatCompletions };
  /** OpenAI's API /v1/completions, whichever the provider is. */
  readonly completions: Completions;
  /** The router's own API. */
  readonly admin: Admin;

  /** Set it up; nothing is sent. Throws ArgumentError. */
  constructor(options: ClientOptions<P>) {
    const found = checked(options);
    this.chat = { completions: new Resource(found, CHAT) };
    this.completions = new Resource(found, COMPLETIONS);
    this.admin = new Admin(found);
    const messages = options.provider === "anthropic" ? new Resource(found, MESSAGES) : this.chat.completions;
    this.messages = messages as MessagesOf<P>;
  }
}
