// ai, with @ai-sdk/openai and @ai-sdk/anthropic, for hosted models: text, streamed and not, and a wrong key.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText } from "ai";

const [url, key, system] = process.argv.slice(2);
const clients = {
  openai: (apiKey) => createOpenAI({ baseURL: `${url}/v1`, apiKey }).chat("gpt-4.1"),
  anthropic: (apiKey) => createAnthropic({ baseURL: `${url}/v1`, apiKey })("claude-sonnet-5"),
};
const report = {};
for (const [name, client] of Object.entries(clients)) {
  const asked = { model: client(key), system, prompt: "How are you?", maxOutputTokens: 9, maxRetries: 0 };
  const first = await generateText(asked);
  const second = await generateText(asked);
  let streamed = "";
  for await (const piece of streamText(asked).textStream) streamed += piece;
  let error = "no error";
  try {
    await generateText({ ...asked, model: client("wrong") });
  } catch (caught) {
    error = caught.statusCode === 401 ? "refused" : String(caught);
  }
  const cached = second.usage.inputTokenDetails?.cacheReadTokens ?? second.usage.cachedInputTokens;
  report[name] = { texts: [first.text, streamed], cached, "wrong key": error };
}
console.log(JSON.stringify(report));
