//! The beginning of a session: who we are, what the session is for, and the password.
//!
//! SCRAM is mutual: a server that says it is content before it has shown that it knows the password too is not believed.

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::config::ChannelBinding;

use super::super::config::PostgresConfig;
use super::super::error::{Failure, not_authenticated, server_said};
use super::wire::Wire;

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Replication,
    Sql,
}

/// Opens the session as far as its first query.
pub(super) async fn start_up(
    wire: &mut Wire,
    config: &PostgresConfig,
    purpose: Purpose,
    options: &str,
    name: &str,
) -> Result<(), Failure> {
    let mut parameters = vec![
        ("user", config.user.as_str()),
        ("database", config.database.as_str()),
        ("client_encoding", "UTF8"),
        ("application_name", name),
        ("options", options),
    ];
    if purpose == Purpose::Replication {
        parameters.push(("replication", "database"));
    }
    frontend::startup_message(parameters, wire.out()).map_err(unsendable)?;
    wire.send().await?;
    authenticate(wire, config).await?;
    loop {
        match wire.message().await? {
            Message::BackendKeyData(_) => {}
            Message::ReadyForQuery(_) => return Ok(()),
            Message::ErrorResponse(error) => return Err(server_said(&error)),
            _ => return Err(wire.not_understood("something else than the start of a session")),
        }
    }
}

async fn authenticate(wire: &mut Wire, config: &PostgresConfig) -> Result<(), Failure> {
    match wire.message().await? {
        Message::AuthenticationOk => return may_go_unbound(config),
        Message::AuthenticationCleartextPassword => {
            may_go_unbound(config)?;
            frontend::password_message(password(config)?.as_bytes(), wire.out()).map_err(unsendable)?;
            wire.send().await?;
        }
        Message::AuthenticationMd5Password(_) => {
            return Err(Failure::definite(
                "authentication_failed",
                format!("the server asks for the password of {} as an MD5 hash, which is not safe", config.display()),
                format!(
                    "SET password_encryption = 'scram-sha-256'; ALTER ROLE {} PASSWORD '...'; and in pg_hba.conf scram-sha-256 \
                     in place of md5",
                    config.user
                ),
            ));
        }
        Message::AuthenticationSasl(offer) => scram(wire, config, &offer).await?,
        Message::ErrorResponse(error) => return Err(server_said(&error)),
        _ => return Err(not_authenticated("the server asks for a way to authenticate that tidemark does not know")),
    }
    match wire.message().await? {
        Message::AuthenticationOk => Ok(()),
        Message::ErrorResponse(error) => Err(server_said(&error)),
        _ => Err(wire.not_understood("something else than the end of the authentication")),
    }
}

async fn scram(wire: &mut Wire, config: &PostgresConfig, offer: &AuthenticationSaslBody) -> Result<(), Failure> {
    let offered: Vec<&str> = offer.mechanisms().collect().map_err(|_| wire.not_understood("a list of mechanisms"))?;
    let end_point = wire.end_point().filter(|_| config.endpoint.get_channel_binding() != ChannelBinding::Disable);
    let bound = end_point.map(|end_point| sasl::ChannelBinding::tls_server_end_point(end_point.to_vec()));
    let (binding, mechanism) = match bound {
        Some(bound) if offered.contains(&SCRAM_SHA_256_PLUS) => (bound, SCRAM_SHA_256_PLUS),
        // We could have: so that a server whose offer was cut down in between notices.
        Some(_) => (sasl::ChannelBinding::unrequested(), SCRAM_SHA_256),
        None => (sasl::ChannelBinding::unsupported(), SCRAM_SHA_256),
    };
    if !offered.contains(&mechanism) {
        return Err(not_authenticated("the server offers no mechanism that tidemark knows (SCRAM-SHA-256)"));
    }
    if mechanism != SCRAM_SHA_256_PLUS {
        may_go_unbound(config)?;
    }
    let refused = |error: std::io::Error| not_authenticated(&error.to_string());
    let mut scram = ScramSha256::new(password(config)?.as_bytes(), binding);
    frontend::sasl_initial_response(mechanism, scram.message(), wire.out()).map_err(unsendable)?;
    wire.send().await?;
    match wire.message().await? {
        Message::AuthenticationSaslContinue(challenge) => scram.update(challenge.data()).map_err(refused)?,
        Message::ErrorResponse(error) => return Err(server_said(&error)),
        _ => return Err(wire.not_understood("something else than a challenge")),
    }
    frontend::sasl_response(scram.message(), wire.out()).map_err(unsendable)?;
    wire.send().await?;
    match wire.message().await? {
        Message::AuthenticationSaslFinal(proof) => scram.finish(proof.data()).map_err(refused),
        Message::ErrorResponse(error) => Err(server_said(&error)),
        _ => Err(wire.not_understood("something else than a proof")),
    }
}

fn password(config: &PostgresConfig) -> Result<&str, Failure> {
    match config.password.as_str() {
        "" => Err(not_authenticated("the server asks for a password, and the URL holds none")),
        password => Ok(password),
    }
}

fn may_go_unbound(config: &PostgresConfig) -> Result<(), Failure> {
    match config.endpoint.get_channel_binding() {
        ChannelBinding::Require => {
            Err(not_authenticated("channel_binding=require, and the server does not bind to TLS"))
        }
        _ => Ok(()),
    }
}

/// A zero byte in a name or password.
fn unsendable(error: std::io::Error) -> Failure {
    not_authenticated(&format!("user, database or password cannot be sent: {error}"))
}
