// ai, with @ai-sdk/openai-compatible: text, streamed and not.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [url, name] = process.argv.slice(2);
const model = createOpenAICompatible({ name: "engine", baseURL: `${url}/v1`, apiKey: "none" })(name);
const asked = { model, prompt: "How are you?", maxOutputTokens: 8, temperature: 0, maxRetries: 0 };

const whole = await generateText(asked);
let streamed = "";
for await (const piece of streamText(asked).textStream) streamed += piece;
console.log(JSON.stringify({ text: whole.text, reason: whole.finishReason, streamed }));
