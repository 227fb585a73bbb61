//! `/openapi.json`, the page that shows it, and the page that problems lead to.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::Json;
use axum::response::{IntoResponse, Response};

use crate::api::problem_codes::{SECTIONS, statuses};
use crate::dashboard::file;
use crate::http::openapi;

const HTML: &str = "text/html; charset=utf-8";

pub(in crate::http) async fn contract() -> Response {
    Json(openapi::document()).into_response()
}

pub(in crate::http) async fn page() -> Response {
    file(HTML, include_str!("../docs.html"))
}

pub(in crate::http) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("../docs.js"))
}

/// The same for as long as the process runs.
static PROBLEMS: LazyLock<String> = LazyLock::new(problems_page);

pub(in crate::http) async fn problems() -> Response {
    file(HTML, &PROBLEMS)
}

fn problems_page() -> String {
    let mut rows = String::new();
    for section in SECTIONS {
        let (title, about) = (html(section.title), html(section.about));
        // Writing to a text cannot fail.
        let _ = write!(rows, "<details class=\"panel\" open><summary>{title}</summary><p>{about}</p><table>");
        rows.push_str("<thead><tr><th>Code</th><th>Status</th><th>Means</th><th>Do</th></tr></thead><tbody>");
        for problem in section.problems {
            let (code, meaning, remedy) = (problem.code, html(problem.meaning), html(problem.remedy));
            let status = statuses(problem);
            let _ = write!(
                rows,
                "<tr id=\"{code}\"><td><a href=\"#{code}\"><code>{code}</code></a></td><td>{status}</td><td>{meaning}</td><td>{remedy}</td></tr>"
            );
        }
        rows.push_str("</tbody></table></details>");
    }
    include_str!("../problems.html").replace("{problems}", &rows)
}

/// Text with `code` in it, as markup.
fn html(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let parts = escaped.split('`').enumerate();
    parts.map(|(at, part)| if at % 2 == 1 { format!("<code>{part}</code>") } else { part.to_owned() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_its_place_on_the_page() {
        let page = problems_page();
        for problem in SECTIONS.iter().flat_map(|section| section.problems) {
            assert_eq!(page.matches(&format!("<tr id=\"{}\">", problem.code)).count(), 1, "{}", problem.code);
        }
        assert!(!page.contains('`') && !page.contains("{problems}"));
        assert_eq!(html("`a>b` & c"), "<code>a&gt;b</code> &amp; c");
    }
}
