//! Whether a request is meant for us, or was made by a page of somebody else in a browser that reaches us. A page can have its
//! own name point at this machine (DNS rebinding), but it cannot choose another name: so an address is always right, and a
//! name has to be known. A page can also send requests without reading the answers; those say where they come from.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

use crate::api::Problem;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Names that are ours, beside addresses and those of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// These names, without ports.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = String>) -> Hosts {
        Hosts(names.into_iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Refuses what is not meant for us.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let asked = authority(uri, headers)?;
        // Only what is no browser sends none.
        let Some(asked) = asked else { return Ok(()) };
        if !self.is_ours(asked.host()) {
            let name: String = asked.host().chars().take(200).collect();
            return Err(Problem::new(421, "unknown_host", format!("{name:?} is not a name of this server"))
                .hint("ask by address, or start with --host NAME"));
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let own = match (origins.next(), origins.next()) {
            (Some(origin), None) => origin.to_str().is_ok_and(|origin| is_of(origin, &asked)),
            // Who looks at one of several may look at the wrong one.
            (_, Some(_)) => false,
            (None, None) => !is_led_here(uri, headers),
        };
        if own {
            return Ok(());
        }
        Err(Problem::new(403, "foreign_origin", "this was sent by a page of another origin")
            .hint("serve the page from the same address, or have a server of yours ask"))
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        name == "localhost" || name.parse::<IpAddr>().is_ok() || self.0.contains(&name)
    }
}

/// Whether a page of somebody else made the browser send this, without Origin: images, scripts and the like. Another port, or another
/// name of the same site, is somebody else. A link that is followed to our page is somebody's wish; one to data or to what is done
/// is the other page's.
fn is_led_here(uri: &Uri, headers: &HeaderMap) -> bool {
    // The second is typed, or a bookmark.
    let ours = |value: &HeaderValue| value == "same-origin" || value == "none";
    let own = headers.get_all(&SEC_FETCH_SITE).iter().all(ours);
    let followed =
        headers.get(&SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate") && !uri.path().starts_with("/v1/");
    !own && !followed
}

/// What the request names as its host. Two of them could mean one to us and another to a proxy, and so could one with a user
/// before it, which no browser sends.
fn authority(uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, Problem> {
    let malformed = || Problem::new(400, "bad_host", "the Host header is not one host");
    let mut named = headers.get_all(header::HOST).iter();
    let (first, more) = (named.next(), named.next());
    let of_header = first.map(|value| value.to_str().ok().and_then(|text| text.parse::<Authority>().ok()));
    let of_header = of_header.map(|parsed| parsed.ok_or_else(malformed)).transpose()?;
    let differs = uri.authority().zip(of_header.as_ref()).is_some_and(|(uri, header)| uri != header);
    let named = uri.authority().cloned().or(of_header);
    let with_user = named.as_ref().is_some_and(|named| named.as_str().contains('@'));
    if more.is_some() || differs || with_user { Err(malformed()) } else { Ok(named) }
}

/// Whether an origin is this host and port.
fn is_of(origin: &str, asked: &Authority) -> bool {
    let origin = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    origin.and_then(|host| host.parse::<Authority>().ok()).is_some_and(|origin| origin == *asked)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(headers: &[(&'static str, &str)]) -> Result<(), (u16, String)> {
        check_at("/v1/query", headers)
    }

    fn check_at(path: &'static str, headers: &[(&'static str, &str)]) -> Result<(), (u16, String)> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let hosts = Hosts::new(["Totals.Example.com".to_owned()]);
        hosts.check(&Uri::from_static(path), &map).map_err(|problem| (problem.status, problem.code.clone()))
    }

    #[test]
    fn a_name_has_to_be_known_and_an_address_is_right() {
        for host in [
            "localhost",
            "LocalHost:7171",
            "127.0.0.1:7171",
            "[::1]:7171",
            "10.1.2.3",
            "totals.example.com:443",
            "totals.example.com.",
        ] {
            assert_eq!(check(&[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(check(&[]), Ok(()));
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:7171",
            "2130706433",
            "totals.example.com.evil.example",
            "xtotals.example.com",
            "0x7f.1",
        ] {
            assert_eq!(check(&[("host", host)]), Err((421, "unknown_host".to_owned())), "{host}");
        }
        for headers in [
            &[("host", "a b")][..],
            &[("host", "localhost"), ("host", "evil.example")],
            &[("host", "")],
            &[("host", "evil.example@localhost")],
            &[("host", "@localhost")],
        ] {
            assert_eq!(check(headers), Err((400, "bad_host".to_owned())), "{headers:?}");
        }
    }

    #[test]
    fn pages_of_others_are_refused() {
        let own = ("host", "localhost:7171");
        for (headers, ok) in [
            (&[own, ("origin", "http://localhost:7171")][..], true),
            (&[own, ("origin", "http://localhost:8080")], false),
            (&[own, ("origin", "http://evil.example")], false),
            (&[own, ("origin", "null")], false),
            (&[own, ("origin", "http://localhost:7171"), ("origin", "http://evil.example")], false),
            (&[own, ("origin", "http://évil.example")], false),
            (&[own, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], false),
            (&[own, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], false),
            (&[own, ("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], false),
            (&[own, ("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate")], false),
            (&[own, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "same-site")], false),
            (&[own, ("sec-fetch-site", "of-the-future")], false),
            (&[own, ("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], true),
            (&[own, ("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")], true),
            (&[own], true),
        ] {
            assert_eq!(check(headers).is_ok(), ok, "{headers:?}");
        }
        let followed = [own, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        for (path, ok) in [("/", true), ("/docs", true), ("/v1/aggregates", false), ("/v1/sources/postgres", false)] {
            assert_eq!(check_at(path, &followed).is_ok(), ok, "{path}");
        }
    }
}
