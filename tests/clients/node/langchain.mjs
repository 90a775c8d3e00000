// @langchain/openai: invoked, streamed, a batch.
import { ChatOpenAI } from "@langchain/openai";

const [url, model] = process.argv.slice(2);
const chat = new ChatOpenAI({ model, apiKey: "none", temperature: 0, maxTokens: 8, maxRetries: 0, configuration: { baseURL: `${url}/v1` } });

let streamed = "";
for await (const chunk of await chat.stream("How are you?")) streamed += chunk.content;
const batch = await chat.batch([...Array(6).keys()].map((number) => `${number} is`));
console.log(JSON.stringify({
  invoked: (await chat.invoke("How are you?")).content,
  streamed,
  batch: batch.map((one) => one.content),
}));
