// openai for Node: chat, text and responses, streamed and not; errors; a client that leaves.
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "system", content: "You are terse." }, { role: "user", content: "How are you?" }];
const asked = { model, max_tokens: 8, temperature: 0 };

async function errorOf(call) {
  try {
    await call();
  } catch (error) {
    return [error.constructor.name, error.status];
  }
  return ["no error"];
}

async function streamedChat() {
  let text = "";
  let tokens = null;
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create({ ...asked, messages, ...options })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    tokens = chunk.usage?.completion_tokens ?? tokens;
  }
  return [text, tokens];
}

async function streamedResponse() {
  let text = "";
  const events = await client.responses.create({ model, input: "Say it.", max_output_tokens: 8, temperature: 0, stream: true });
  for await (const event of events) text += event.type === "response.output_text.delta" ? event.delta : "";
  return text;
}

async function leaveEarly() {
  const stream = await client.completions.create({ model, prompt: "One two", max_tokens: 200, stream: true });
  for await (const _ of stream) break;
  return "left";
}

const chat = await client.chat.completions.create({ ...asked, messages });
const many = await Promise.all(
  [...Array(12).keys()].map((number) => client.completions.create({ ...asked, prompt: `${number} is` })),
);
console.log(JSON.stringify({
  models: (await client.models.list()).data.map((one) => one.id),
  chat: [chat.choices[0].message.content, chat.choices[0].finish_reason, chat.usage.completion_tokens],
  streamed: await streamedChat(),
  response: (await client.responses.create({ model, input: messages, max_output_tokens: 8, temperature: 0 })).output_text,
  streamedResponse: await streamedResponse(),
  unknownModel: await errorOf(() => client.chat.completions.create({ ...asked, messages, model: "nobody" })),
  badParameter: await errorOf(() => client.chat.completions.create({ ...asked, messages, temperature: -1 })),
  leaves: await leaveEarly(),
  many: many.map((one) => one.choices[0].text),
}));
