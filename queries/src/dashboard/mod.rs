//! The page at `/`, built from `queries/dashboard` and compiled into the program; nothing is fetched from elsewhere, and
//! the policy below holds the browser to that.
//!
//! Names of files stay the same from build to build. The browser asks again each time and is answered 304 where the tag
//! still fits, so an upgraded server is never looked at with an old script.

/// What `tidemark demo` lets happen.
pub mod story;

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rust_embed::{EmbeddedFile, RustEmbed};

use crate::api::Problem;
use story::Teller;

/// Only our own script and style run, nothing is framed, nothing is sent elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What `make dashboard` built.
#[derive(RustEmbed)]
#[folder = "dashboard/dist/"]
struct Bundle;

/// What the page looks at to know that it may offer the story.
const DEMO: (&str, &str) = ("<html ", "<html data-mode=\"demo\" ");

/// The page and its parts; with a teller, the demo's story too.
pub fn routes(teller: Option<Arc<dyn Teller>>) -> Router {
    let page = match &teller {
        None => get(async |headers: HeaderMap, uri: Uri| built("index.html", &headers, &uri)),
        Some(_) => get(demonstrating),
    };
    let story = teller.map(story::routes).unwrap_or_default();
    Router::new()
        .route("/", page)
        .route(
            "/assets/{name}",
            get(|Path(name): Path<String>, headers: HeaderMap, uri: Uri| async move {
                built(&format!("assets/{name}"), &headers, &uri)
            }),
        )
        .merge(story)
}

/// The page, told that it is the demo's. Without a tag: it is another one than the bundle's.
async fn demonstrating() -> Response {
    let page = Bundle::get("index.html").map(|file| String::from_utf8_lossy(&file.data).replacen(DEMO.0, DEMO.1, 1));
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], policed(page.unwrap_or_default())).into_response()
}

/// A file of the bundle, or that the browser has it already.
fn built(path: &str, headers: &HeaderMap, uri: &Uri) -> Response {
    let Some(EmbeddedFile { data, metadata }) = Bundle::get(path) else {
        return Problem::new(404, "unknown_route", format!("there is nothing at {}", uri.path())).into_response();
    };
    let tag = format!("\"{}\"", hex(metadata.sha256_hash().get(..12).unwrap_or_default()));
    let same = |known: &str| known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag);
    let known = headers.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    let tagged = [(header::ETAG, tag.clone())];
    if known.is_some_and(same) {
        return (StatusCode::NOT_MODIFIED, tagged, policed("")).into_response();
    }
    let kind = match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("md") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    };
    (tagged, [(header::CONTENT_TYPE, kind)], policed(data.into_owned())).into_response()
}

/// A file that is compiled into the program by another module, under our policy.
pub(crate) fn file(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], policed(text)).into_response()
}

fn policed(body: impl IntoResponse) -> Response {
    let headers = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, body).into_response()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ask(path: &str, known: Option<&str>) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(known) = known {
            headers.insert(header::IF_NONE_MATCH, known.parse().unwrap());
        }
        built(path, &headers, &Uri::from_static("/"))
    }

    #[test]
    fn a_file_that_the_browser_has_is_not_sent_again() {
        let first = ask("index.html", None);
        assert_eq!(
            (first.status(), &first.headers()[header::CONTENT_TYPE]),
            (StatusCode::OK, &"text/html; charset=utf-8".parse().unwrap())
        );
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        // A compressed answer carries the tag as a weak one.
        for known in [tag.clone(), format!("W/{tag}"), format!("\"old\", {tag}")] {
            let again = ask("index.html", Some(&known));
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(again.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
        }
        assert_eq!(ask("index.html", Some("\"old\"")).status(), StatusCode::OK);
        assert_eq!(ask("assets/../index.html", None).status(), StatusCode::NOT_FOUND);
    }

    /// The policy allows no inline script or style and nothing of another host: the bundle must want none.
    #[test]
    fn the_bundle_wants_what_the_policy_allows() {
        let page = Bundle::get("index.html").unwrap();
        let page = String::from_utf8(page.data.into_owned()).unwrap();
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("style="), "{page}");
        for tag in page.split("<script").skip(1) {
            assert!(tag.split_once("</script>").unwrap().0.ends_with('>'), "an inline script: {tag}");
        }
        let style = Bundle::get("assets/dashboard.css").unwrap();
        assert!(!String::from_utf8(style.data.into_owned()).unwrap().contains("url("));
    }

    /// Data reaches the page as text only, never as markup.
    #[test]
    fn the_page_makes_no_markup_of_data() {
        let docs = include_str!("../http/docs.js");
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboard/src");
        let mut folders = vec![root];
        let mut sources = vec![docs.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    sources.push(std::fs::read_to_string(path).unwrap());
                }
            }
        }
        assert!(sources.len() > 10, "the page's sources are not found");
        for source in sources {
            for forbidden in ["innerHTML", "InnerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!source.contains(forbidden), "{forbidden}: {source}");
            }
        }
    }
}
