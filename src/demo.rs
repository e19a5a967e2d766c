//! The demonstration model: Ollama's API in small, for trying, testing and measuring a tunnel where
//! no Ollama is.
//!
//! This file takes connections and routes requests. `gate` turns strangers away, `prompt` reads
//! what a caller says, `answer` writes what the model says; `ollama`, `openai` and `anthropic` put
//! both into the words of one API each, on top of `reply` and `clock`.

mod answer;
mod anthropic;
mod clock;
mod gate;
mod ollama;
mod openai;
mod prompt;
mod reply;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::reply::Failure;
use crate::transport::Body;

/// The name of the one model there is.
pub const MODEL: &str = "demo:latest";

const MAX_BODY: usize = 32 << 20;

/// How long to leave a listener alone that cannot accept (no file descriptor left, most often).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A model that needs no weights: it says who it is and repeats the last thing it was told.
#[derive(Debug, Clone)]
pub struct Demo {
    pace: Duration,
}

impl Demo {
    /// A model that writes one word each `pace`.
    pub fn new(pace: Duration) -> Self {
        Self { pace }
    }

    /// Serves Ollama's API on the listener until `shutdown`; open connections are dropped then.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let answers = move |request| {
            let demo = self.clone();
            async move { demo.answer(request).await }
        };
        serve(listener, shutdown, answers).await;
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        if !gate::admits(&head) {
            return reply::empty(StatusCode::FORBIDDEN);
        }
        let path = head.uri.path();
        let methods = methods(path);
        if methods.is_empty() {
            return reply::text(StatusCode::NOT_FOUND, "404 page not found");
        }
        if !methods.contains(&head.method) {
            return reply::text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed");
        }
        let answered = match read(body).await {
            Ok(body) => self.route(path, &body).await,
            Err(failure) => Err(failure),
        };
        answered.unwrap_or_else(|failure| match path {
            "/v1/messages" => anthropic::failed(&failure),
            _ if path.starts_with("/v1/") => openai::failed(&failure),
            _ => ollama::failed(&failure),
        })
    }

    async fn route(&self, path: &str, body: &Bytes) -> Result<Response<Body>, Failure> {
        match path {
            "/" => Ok(reply::text(StatusCode::OK, "Ollama is running")),
            "/api/version" => Ok(ollama::version()),
            "/api/tags" => Ok(ollama::tags()),
            "/api/ps" => Ok(ollama::running()),
            "/api/show" => ollama::show(body),
            "/api/generate" => ollama::generate(body, self.pace).await,
            "/api/chat" => ollama::chat(body, self.pace).await,
            "/api/embed" => ollama::embed(body),
            "/api/embeddings" => ollama::embeddings(body),
            "/v1/chat/completions" => openai::chat(body, self.pace).await,
            "/v1/completions" => openai::completions(body, self.pace).await,
            "/v1/embeddings" => openai::embeddings(body),
            "/v1/messages" => anthropic::messages(body, self.pace).await,
            "/v1/models" => Ok(openai::models()),
            _ => openai::model(path.trim_start_matches("/v1/models/")),
        }
    }
}

/// Answers whatever comes to the listener until `shutdown`; open connections are dropped then.
pub async fn serve<A, F>(listener: TcpListener, shutdown: CancellationToken, answers: A)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(connection(socket, answers.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the built-in server cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

async fn connection<F>(socket: TcpStream, answers: impl Fn(Request<Incoming>) -> F)
where
    F: Future<Output = Response<Body>>,
{
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY refused");
    }
    let service = service_fn(|request| {
        let answered = answers(request);
        async { Ok::<_, Infallible>(answered.await) }
    });
    let served = http1::Builder::new()
        .serve_connection(TokioIo::new(socket), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a caller of the built-in server left");
    }
}

/// The methods a path takes; none for a path that is not served.
fn methods(path: &str) -> &'static [Method] {
    match path {
        "/" | "/api/version" | "/api/tags" => &[Method::GET, Method::HEAD],
        "/api/ps" | "/v1/models" => &[Method::GET],
        "/api/show" | "/api/generate" | "/api/chat" | "/api/embed" | "/api/embeddings" => &[Method::POST],
        "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings" | "/v1/messages" => &[Method::POST],
        _ => match path.strip_prefix("/v1/models/") {
            Some(name) if !name.is_empty() => &[Method::GET],
            _ => &[],
        },
    }
}

async fn read(body: Incoming) -> Result<Bytes, Failure> {
    let too_large = || Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "request body too large");
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(Failure::bad_request("request body broke off")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use base64::Engine as _;
    use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN};
    use http_body_util::Full;
    use hyper::client::conn::http1::SendRequest;
    use serde::Deserialize;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;

    /// Longer than any test lasts: an answer at this pace never gets to its first word.
    const NEVER: Duration = Duration::from_secs(100_000);
    const CHAT: &str = r#"{"model":"demo","messages":[{"role":"user","content":"good  day"}]}"#;

    struct Server {
        address: SocketAddr,
        shutdown: CancellationToken,
        serving: JoinHandle<()>,
    }

    async fn serve(pace: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(Demo::new(pace).serve(listener, shutdown.clone()));
        Server {
            address,
            shutdown,
            serving,
        }
    }

    async fn dial(address: SocketAddr) -> SendRequest<Full<Bytes>> {
        let socket = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }

    fn request(method: Method, path: &str, body: &str) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::from(body.to_owned()));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert(HOST, "localhost:11434".parse().unwrap());
        request
    }

    impl Server {
        async fn send(&self, request: Request<Full<Bytes>>) -> (http::response::Parts, String) {
            let response = dial(self.address).await.send_request(request).await.unwrap();
            let (head, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            (head, String::from_utf8(body.to_vec()).unwrap())
        }

        async fn post(&self, path: &str, body: &str) -> (http::response::Parts, String) {
            self.send(request(Method::POST, path, body)).await
        }

        async fn post_json(&self, path: &str, body: Value) -> Value {
            let (head, answer) = self.post(path, &body.to_string()).await;
            assert_eq!(head.status, StatusCode::OK, "{answer}");
            assert_eq!(head.headers[CONTENT_LENGTH], answer.len().to_string());
            serde_json::from_str(&answer).unwrap()
        }
    }

    #[tokio::test]
    async fn a_streamed_chat_says_what_a_whole_one_says() {
        let server = serve(Duration::from_millis(1)).await;
        let (head, streamed) = server.post("/api/chat", CHAT).await;
        assert_eq!(head.headers[CONTENT_TYPE], "application/x-ndjson");
        assert!(!head.headers.contains_key(CONTENT_LENGTH));
        let lines: Vec<Value> = streamed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let text: String = lines
            .iter()
            .map(|line| line["message"]["content"].as_str().unwrap())
            .collect();
        let last = lines.last().unwrap();
        assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
        assert_eq!(last["eval_count"], lines.len() - 1);
        assert_eq!(last["prompt_eval_count"], 2);

        let messages = json!([{ "role": "user", "content": "good day" }]);
        let body = json!({ "model": "demo:latest", "messages": messages, "stream": false });
        let whole = server.post_json("/api/chat", body).await;
        assert_eq!(whole["message"]["content"], text);
        assert!(
            text.contains("demonstration model") && text.contains("You said: “good day”"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn limits_cut_the_answer() {
        let server = serve(Duration::ZERO).await;
        let options = json!({ "num_predict": 3 });
        let body = json!({ "model": "demo", "prompt": "hi", "stream": false, "options": options });
        let answer = server.post_json("/api/generate", body).await;
        assert_eq!(
            (&answer["response"], &answer["done_reason"]),
            (&json!("Hello! I am"), &json!("length"))
        );

        let content = json!([{ "type": "text", "text": "hi" }]);
        let messages = json!([{ "role": "user", "content": content }]);
        let body = json!({ "model": "demo", "messages": messages, "max_tokens": 2 });
        let answer = server.post_json("/v1/chat/completions", body.clone()).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "Hello! I");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["total_tokens"], 3);
        let answer = server.post_json("/v1/messages", body).await;
        assert_eq!(
            (&answer["content"][0]["text"], &answer["stop_reason"]),
            (&json!("Hello! I"), &json!("max_tokens"))
        );
    }

    #[tokio::test]
    async fn an_empty_prompt_only_loads() {
        let server = serve(NEVER).await;
        let answer = server.post_json("/api/generate", json!({ "model": "demo" })).await;
        assert_eq!(
            (&answer["done"], &answer["done_reason"]),
            (&json!(true), &json!("load"))
        );
    }

    #[tokio::test]
    async fn strangers_are_turned_away() {
        let server = serve(Duration::ZERO).await;
        for (header, value) in [(HOST, "example.com"), (ORIGIN, "https://example.com")] {
            let mut request = request(Method::GET, "/api/tags", "");
            request.headers_mut().insert(header, value.parse().unwrap());
            let (head, body) = server.send(request).await;
            assert_eq!((head.status, body.as_str()), (StatusCode::FORBIDDEN, ""));
        }
    }

    #[tokio::test]
    async fn each_api_words_its_failures() {
        let server = serve(Duration::ZERO).await;
        let stranger = r#"{"model":"x","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#;
        let missing = "model 'x' not found";
        let openai = json!({ "message": missing, "type": "not_found_error", "param": null, "code": null });
        let anthropic = json!({ "type": "not_found_error", "message": missing });
        for (path, expected) in [
            ("/api/chat", json!({ "error": missing })),
            ("/v1/chat/completions", json!({ "error": openai })),
            ("/v1/messages", json!({ "type": "error", "error": anthropic })),
        ] {
            let (head, body) = server.post(path, stranger).await;
            assert_eq!(head.status, StatusCode::NOT_FOUND);
            assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
            let (head, _) = server.post(path, "{").await;
            assert_eq!(head.status, StatusCode::BAD_REQUEST);
        }
    }

    #[tokio::test]
    async fn what_is_not_served_is_refused() {
        let server = serve(Duration::ZERO).await;
        let (head, body) = server.post("/api/pull", "{}").await;
        assert_eq!(
            (head.status, body.as_str()),
            (StatusCode::NOT_FOUND, "404 page not found")
        );
        let (head, _) = server.send(request(Method::GET, "/api/chat", "")).await;
        assert_eq!(head.status, StatusCode::METHOD_NOT_ALLOWED);
        let mut large = request(Method::POST, "/api/chat", "");
        *large.body_mut() = Full::from(vec![b' '; MAX_BODY + 1]);
        let (head, _) = server.send(large).await;
        assert_eq!(head.status, StatusCode::PAYLOAD_TOO_LARGE);
        let (head, body) = server.send(request(Method::HEAD, "/", "")).await;
        assert_eq!((head.status, body.as_str()), (StatusCode::OK, ""));
    }

    #[tokio::test]
    async fn event_streams_end_as_their_apis_say() {
        let server = serve(Duration::ZERO).await;
        let messages = json!([{ "role": "user", "content": "hi" }]);
        let mut body = json!({ "model": "demo", "messages": messages, "stream": true, "max_tokens": 2 });
        let (_, events) = server.post("/v1/messages", &body.to_string()).await;
        let names: Vec<_> = events.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        let opening = ["message_start", "content_block_start", "ping"];
        let words = ["content_block_delta", "content_block_delta"];
        let ending = ["content_block_stop", "message_delta", "message_stop"];
        assert_eq!(names, [&opening[..], &words, &ending].concat());

        body["stream_options"] = json!({ "include_usage": true });
        let (head, events) = server.post("/v1/chat/completions", &body.to_string()).await;
        assert_eq!(head.headers[CONTENT_TYPE], "text/event-stream");
        let data: Vec<_> = events
            .split_terminator("\n\n")
            .map(|event| event.strip_prefix("data: ").unwrap())
            .collect();
        let chunk = |index: usize| serde_json::from_str::<Value>(data[index]).unwrap();
        assert_eq!(data.len(), 5);
        assert_eq!(
            chunk(0)["choices"][0]["delta"],
            json!({ "role": "assistant", "content": "Hello!" })
        );
        assert_eq!(chunk(2)["choices"][0]["finish_reason"], "length");
        assert_eq!(chunk(3)["usage"]["completion_tokens"], 2);
        assert_eq!(data[4], "[DONE]");
    }

    #[tokio::test]
    async fn packed_embeddings_are_the_plain_ones() {
        let server = serve(Duration::ZERO).await;
        let mut body = json!({ "model": "demo", "input": ["a fox", "a dog"] });
        let plain = server.post_json("/v1/embeddings", body.clone()).await;
        body["encoding_format"] = json!("base64");
        let packed = server.post_json("/v1/embeddings", body.clone()).await;
        let ollama = server.post_json("/api/embed", body).await;
        let floats = |vector: &Value| -> Vec<f32> { Vec::deserialize(vector).unwrap() };
        for index in 0..2 {
            let packed = packed["data"][index]["embedding"].as_str().unwrap();
            let bytes = base64::engine::general_purpose::STANDARD.decode(packed).unwrap();
            let unpacked: Vec<_> = bytes
                .chunks(4)
                .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
                .collect();
            assert_eq!(unpacked, floats(&plain["data"][index]["embedding"]));
            assert_eq!(unpacked, floats(&ollama["embeddings"][index]));
        }
    }

    #[tokio::test]
    async fn a_caller_that_leaves_ends_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for streamed in [true, false] {
            let mut caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (socket, _) = listener.accept().await.unwrap();
            let answers = |request| async { Demo::new(NEVER).answer(request).await };
            let connection = tokio::spawn(connection(socket, answers));
            let body = CHAT.replacen('{', &format!(r#"{{"stream":{streamed},"#), 1);
            let length = body.len();
            let head = format!("POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
            caller.write_all((head + &body).as_bytes()).await.unwrap();
            if streamed {
                assert_eq!(caller.read_u8().await.unwrap(), b'H');
            }
            drop(caller);
            connection.await.unwrap();
        }
    }

    #[tokio::test]
    async fn shutdown_drops_open_answers() {
        let server = serve(NEVER).await;
        let mut sender = dial(server.address).await;
        let response = sender
            .send_request(request(Method::POST, "/api/chat", CHAT))
            .await
            .unwrap();
        server.shutdown.cancel();
        server.serving.await.unwrap();
        assert!(response.into_body().collect().await.is_err());
    }
}
