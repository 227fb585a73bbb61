//! The page at `/`: the first aggregates, moving. Plain files compiled into the program; nothing is fetched from
//! elsewhere, and the policy below holds the browser to that.

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// Only our own script and style run, nothing is framed, nothing is sent elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page and its parts.
pub fn routes() -> Router {
    Router::new()
        .route("/", get(|| async { file("text/html; charset=utf-8", include_str!("page.html")) }))
        .route("/dashboard.css", get(|| async { file("text/css; charset=utf-8", include_str!("page.css")) }))
        .route("/dashboard.js", get(|| async { file("text/javascript; charset=utf-8", include_str!("page.js")) }))
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    /// Data reaches the page as text only, never as markup.
    #[test]
    fn the_page_makes_no_markup_of_data() {
        let script = include_str!("page.js");
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!script.contains(forbidden), "{forbidden}");
        }
        let page = include_str!("page.html");
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("style="));
    }
}
