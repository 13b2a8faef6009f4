// The server, as the page sees it: the models it has and the answers it streams. Enters: JSON and server-sent events of
// the page's own origin. Leaves: strings and numbers that were checked to be some. Invariant: no other origin is ever
// asked, and no redirect is followed.

// An event longer than this is no event of a chat.
const MAX_EVENT = 1 << 20;

/** What went wrong: `status` is the HTTP status, 0 when there was no answer. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, key, options = {}) {
  const headers = {Accept: 'application/json'};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (options.body) headers['Content-Type'] = 'application/json';
  let response;
  try {
    response = await fetch(path, {...options, headers, redirect: 'error', cache: 'no-store', credentials: 'omit', mode: 'same-origin'});
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(0, '');
  }
  if (!response.ok) throw new ApiError(response.status, await messageOf(response));
  return response;
}

/** The server's own words on what is wrong. */
async function messageOf(response) {
  try {
    const message = (await response.json())?.error?.message;
    return typeof message === 'string' ? message.slice(0, 1000) : '';
  } catch {
    return '';
  }
}

/** [{id, isAdapter}] of the models on offer; adapters know their base. */
export async function listModels(key) {
  const found = await (await ask('v1/models', key)).json();
  const rows = Array.isArray(found?.data) ? found.data : [];
  return rows.filter((row) => typeof row?.id === 'string' && row.id !== '')
      .map((row) => ({id: row.id, isAdapter: typeof row.parent === 'string' && row.parent !== ''}));
}

/** The data of each server-sent event. */
async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();  // holds back what is not a whole letter yet
  let pending = '';
  try {
    while (true) {
      const {done, value} = await reader.read();
      pending += done ? decoder.decode() + '\n\n' : decoder.decode(value, {stream: true});
      pending = pending.replace(/\r\n/g, '\n');
      for (let end; (end = pending.indexOf('\n\n')) !== -1; pending = pending.slice(end + 2)) {
        const data = pending.slice(0, end).split('\n').filter((line) => line.startsWith('data:'));
        if (data.length) yield data.map((line) => line.slice(5).replace(/^ /, '')).join('\n');
      }
      if (pending.length > MAX_EVENT) throw new ApiError(0, 'an event without end');
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * One answer as it is made: yields {text}, {finish}, {tokens} in the order they come. Throws ApiError, also when the
 * stream breaks off before its end; AbortError when `signal` stopped it.
 */
export async function* streamChat(request, key, signal) {
  const body = JSON.stringify({...request, stream: true, stream_options: {include_usage: true}});
  const response = await ask('v1/chat/completions', key, {method: 'POST', body, signal});
  for await (const data of eventsOf(response.body)) {
    if (data === '[DONE]') return;
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      throw new ApiError(0, 'an event that is no JSON');
    }
    if (typeof event?.error?.message === 'string') throw new ApiError(500, event.error.message.slice(0, 1000));
    const choice = event?.choices?.[0];
    if (typeof choice?.delta?.content === 'string' && choice.delta.content) yield {text: choice.delta.content};
    if (typeof choice?.finish_reason === 'string') yield {finish: choice.finish_reason};
    if (Number.isFinite(event?.usage?.completion_tokens)) yield {tokens: event.usage.completion_tokens};
  }
  throw new ApiError(0, 'cut');
}
