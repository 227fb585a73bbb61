//! Who may use a route: `Authorization: Bearer`, looked at before anything of a request is read. Cookies and parameters are
//! not: a browser sends the first by itself, and the second stand in logs.
//!
//! A token may be revoked while its request is under way, for as long as its body comes slowly or a position is waited for. So it is
//! looked at again: where something is read before the answer goes out, where something changes before that is begun.
//!
//! The surprise: an action goes on where its client hangs up or is told that it took too long, and nobody comes back here. So what is
//! written down of it is written wherever the request ends.

use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::state::AppState;
use super::told::told;
use super::under_way::UnderWay;
use crate::access::gate::{Gate, Refusal};
use crate::access::{Caller, Scope};
use crate::api::Problem;

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing: it shows no data.
    Nothing,
    /// To read; the handler shows a pinned token its part, and nothing else.
    ReadPinned,
    /// To read everything: it cannot be cut to a pin.
    ReadAll,
    /// To register.
    Register,
    /// Everything.
    Admin,
}

impl Needs {
    /// The scope, where there is one.
    pub(super) fn scope(self) -> Option<Scope> {
        match self {
            Needs::Nothing => None,
            Needs::ReadPinned | Needs::ReadAll => Some(Scope::Read),
            Needs::Register => Some(Scope::Register),
            Needs::Admin => Some(Scope::Admin),
        }
    }
}

/// The layer around one route's handler.
pub(super) async fn authorize(
    State((gate, needs, under_way)): State<(Gate, Needs, UnderWay)>,
    mut request: Request,
    next: Next,
) -> Response {
    let asking = who_asks(&gate, request.headers());
    let mut trail = Trail::begin(needs, &asking, &request);
    let begun = may_pass(asking, needs).and_then(|caller| match needs.scope() {
        None => Ok((caller, None)),
        Some(_) => under_way.begin(&caller).map(|one| (caller, one)),
    });
    let (caller, _one) = match begun {
        Ok(begun) => begun,
        Err(problem) => {
            trail.ends(problem.status);
            return problem.into_response();
        }
    };
    request.extensions_mut().insert(caller.clone());
    let mut response = next.run(request).await;
    if needs.scope() == Some(Scope::Read)
        && let Err(refusal) = gate.check(&caller)
    {
        response = Problem::from(refusal).into_response();
    }
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response.extensions_mut().insert(told(&caller, problem));
    }
    trail.ends(response.status().as_u16());
    response
}

/// What is written down of a request that may change something, when it ends.
struct Trail(Option<Action>);

struct Action {
    token: String,
    scope: Scope,
    method: Method,
    path: String,
    /// What was answered; nothing where nobody was there to hear it.
    status: Option<u16>,
}

impl Trail {
    fn begin(needs: Needs, asking: &Result<Caller, Problem>, request: &Request) -> Trail {
        let audited = needs.scope().filter(|scope| *scope > Scope::Read);
        Trail(audited.map(|scope| Action {
            token: asking.as_ref().map_or("unknown", Caller::id).to_owned(),
            scope,
            method: request.method().clone(),
            path: request.uri().path().chars().take(200).collect(),
            status: None,
        }))
    }

    fn ends(&mut self, status: u16) {
        if let Some(action) = &mut self.0 {
            action.status = Some(status);
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        let Some(Action { token, scope, method, path, status }) = &self.0 else { return };
        match status {
            Some(status) => tracing::info!(target: "audit", token, %scope, %method, path, status, "admin action"),
            None => tracing::info!(target: "audit", token, %scope, %method, path, status = "gone", "admin action"),
        }
    }
}

/// Who a request is from; the problem where it carries what is no token.
fn who_asks(gate: &Gate, headers: &HeaderMap) -> Result<Caller, Problem> {
    // Where there are no tokens, the header is between the caller and a proxy in front.
    match gate.is_open() {
        true => Ok(Caller::Anyone),
        false => bearer(headers).and_then(|token| gate.admit(token).map_err(Problem::from)),
    }
}

fn may_pass(admitted: Result<Caller, Problem>, needs: Needs) -> Result<Caller, Problem> {
    let Some(scope) = needs.scope() else { return Ok(admitted.unwrap_or(Caller::Nobody)) };
    let caller = admitted?;
    if caller == Caller::Nobody {
        return Err(Problem::new(401, "token_missing", "a token is needed here").hint(
            "send the header Authorization: Bearer TOKEN; the command line takes --token-file or TIDEMARK_TOKEN",
        ));
    }
    if !caller.may(scope) {
        let detail = format!("the scope {scope} is needed here, and token {} lacks it", caller.id());
        return Err(Problem::new(403, "scope_missing", detail)
            .hint(format!("tidemark token create --scope {scope} makes one that has it")));
    }
    if caller.is_pinned() && needs != Needs::ReadPinned {
        let detail = format!("token {} sees a part of the data, and this cannot be cut to it", caller.id());
        return Err(Problem::new(403, "token_pinned", detail).hint("ask with a token that is not pinned"));
    }
    Ok(caller)
}

/// The token that a request carries.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()));
    // What it is instead may be a secret of somewhere else.
    let malformed = || Problem::new(401, "token_unknown", "the Authorization header is not of the form Bearer TOKEN");
    token.map(Some).ok_or_else(malformed)
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown => Problem::new(401, "token_unknown", "there is no such token, or it was revoked")
                .hint("tidemark token list shows the tokens there are"),
            Refusal::Expired => Problem::new(401, "token_expired", "the token has expired")
                .hint("tidemark token create makes another one"),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(nobody_asked)
    }
}

/// Only where a route stands outside of the list; then nobody is let in.
fn nobody_asked() -> Problem {
    Problem::new(500, "internal_error", "nobody was asked who calls")
}

/// What a request says that changes something, once all of it is there and its caller still may.
pub(super) struct StillAllowed<T>(pub(super) T);

impl<T: FromRequest<AppState>> FromRequest<AppState> for StillAllowed<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Response> {
        let caller = request.extensions().get::<Caller>().cloned();
        let said = T::from_request(request, state).await;
        let caller = caller.ok_or_else(|| nobody_asked().into_response())?;
        state.gate.check(&caller).map_err(|refusal| Problem::from(refusal).into_response())?;
        said.map(StillAllowed).map_err(IntoResponse::into_response)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::access::TokenFile;

    fn admit(gate: &Gate, needs: Needs, headers: &HeaderMap) -> Result<Caller, Problem> {
        may_pass(who_asks(gate, headers), needs)
    }

    #[test]
    fn a_header_of_another_scheme_is_no_token_and_no_matter_where_none_is_needed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        TokenFile::change(&path, |_| Ok(())).unwrap();
        let (asks, open) = (Gate::of_file(path).unwrap(), Gate::default());
        for sent in ["Basic dXNlcjpwdw==", "Bearer", "tmk_1", "Bearer tmk_00000000_00"] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, sent.parse().unwrap())]);
            assert_eq!(admit(&open, Needs::Admin, &headers), Ok(Caller::Anyone), "{sent}");
            assert_eq!(admit(&asks, Needs::Nothing, &headers), Ok(Caller::Nobody), "{sent}");
            let refused = admit(&asks, Needs::ReadAll, &headers).unwrap_err();
            assert_eq!((refused.status, refused.code.as_str()), (401, "token_unknown"), "{sent}");
        }
        let refused = admit(&asks, Needs::ReadAll, &HeaderMap::new()).unwrap_err();
        assert_eq!((refused.status, refused.code.as_str()), (401, "token_missing"));
    }
}
