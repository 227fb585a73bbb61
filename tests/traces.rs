//! Spans of requests, at a collector of a few lines: whose request, of which trace, and never a value of a row.
//!
//! `cargo test --release --workspace --features otel --test tests -- traces::` (`make test-otel`).

use std::time::Duration;

use crate::support::server::{Server, serve};

/// A server that is told of a collector.
fn start(data: &std::path::Path, endpoint: &str, source: &[&str]) -> Server {
    let mut command = serve(data);
    command.args(source);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env_remove("OTEL_SERVICE_NAME").env("RUST_LOG", "trace");
    Server::listen(&mut command)
}

/// Nobody listens there, and it costs nobody anything.
#[test]
fn a_collector_that_is_away_disturbs_nothing() {
    let data = tempfile::tempdir().unwrap();
    let server = start(data.path(), "http://127.0.0.1:1", &["--generator", "1"]);
    server.get_ok("/healthz");
    let began = std::time::Instant::now();
    assert!(server.terminate().success());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[cfg(feature = "otel")]
mod collected {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::time::Duration;

    use serde_json::{Value, json};

    use crate::support::database::Database;

    /// A value of a row, and of a question.
    const TEXT: &str = "Geheimnis";
    const NUMBER: &str = "987654321";
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const CALLER: &str = "00f067aa0ba902b7";

    /// Takes what is posted; its address, and the bodies by path.
    fn collector() -> (String, mpsc::Receiver<(String, String)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (took, bodies) = mpsc::channel();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = BufReader::new(connection.unwrap());
                let mut head = Vec::new();
                for line in connection.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
                    head.push(line.to_lowercase());
                }
                let length = head.iter().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
                let mut body = vec![0; length.unwrap()];
                connection.read_exact(&mut body).unwrap();
                connection
                    .get_mut()
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .unwrap();
                let path = head[0].split(' ').nth(1).unwrap().to_owned();
                took.send((path, String::from_utf8(body).unwrap())).unwrap();
            }
        });
        (address, bodies)
    }

    fn attribute<'a>(of: &'a Value, key: &str) -> &'a Value {
        let found = of["attributes"].as_array().unwrap().iter().find(|pair| pair["key"] == key);
        found.map_or(&Value::Null, |pair| pair["value"].as_object().unwrap().values().next().unwrap())
    }

    #[test]
    fn a_request_is_a_span_of_its_callers_trace() {
        let database = Database::start(
            &[],
            &format!(
                "CREATE TABLE payments (id bigint PRIMARY KEY, currency text, amount bigint, created_at timestamptz);
                 INSERT INTO payments VALUES (1, '{TEXT}', {NUMBER}, '2026-01-01Z')"
            ),
        );
        let data = tempfile::tempdir().unwrap();
        let (address, bodies) = collector();
        let url = database.url();
        let server = super::start(data.path(), &address, &["--postgres", &url, "--table", "public.payments"]);
        server.get_ok("/readyz");
        let definition = json!({"table": "public.payments", "dimensions": ["currency"],
            "measures": [{"name": "amount", "sum": "amount"}], "time": {"column": "created_at", "granularity": "month"}});
        server.register("monthly", &definition);
        let headers = [("x-request-id", "mine-9"), ("traceparent", &*format!("00-{TRACE}-{CALLER}-01"))];
        let path = format!("/v1/aggregates/monthly/data?where=currency:{TEXT}&having=amount%3E1");
        let reply = server.exchange("GET", &path, &headers, b"").unwrap();
        assert!(reply.status == 200 && reply.text.contains(NUMBER), "{}", reply.text);
        // A graceful stop sends what was not sent yet.
        assert!(server.terminate().success());
        let mut spans = Vec::new();
        while let Ok((path, body)) = bodies.recv_timeout(Duration::from_millis(200)) {
            assert_eq!(path, "/v1/traces");
            assert!(!body.contains(TEXT) && !body.contains(NUMBER), "{body}");
            let body: Value = serde_json::from_str(&body).unwrap();
            let resource = &body["resourceSpans"][0]["resource"];
            assert_eq!(attribute(resource, "service.name"), "tidemark", "{resource}");
            spans.extend(body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone());
        }
        let span =
            spans.iter().find(|span| attribute(span, "request_id") == "mine-9").expect("no span of the question");
        assert_eq!(attribute(span, "aggregate"), "monthly", "{span}");
        assert_eq!(attribute(span, "http.response.status_code"), "200", "{span}");
        assert_eq!(span["name"], "GET /v1/aggregates/{name}/data", "{span}");
        assert_eq!((&span["traceId"], &span["parentSpanId"]), (&json!(TRACE), &json!(CALLER)), "{span}");
        assert_eq!(span["kind"], 2, "{span}");
        let nanoseconds = |key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(nanoseconds("endTimeUnixNano") > nanoseconds("startTimeUnixNano"), "{span}");
        // Others have traces of their own, and only requests are spans.
        assert!(spans.iter().any(|span| span["traceId"] != TRACE && span["parentSpanId"].is_null()));
        assert!(spans.iter().all(|span| attribute(span, "request_id").is_string()));
    }
}
