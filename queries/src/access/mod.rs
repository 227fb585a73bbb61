//! Who may do what: tokens, their scopes, and the part of the data that a token is pinned to. Knows nothing of HTTP.

/// Who asks.
pub mod caller;
/// From what a request carries to who asks.
pub mod gate;
/// One aggregate that a token sees, and the part of it.
pub mod pin;
/// What a token may do.
pub mod scope;
/// Secrets, and what is kept of them.
pub mod token;
/// The file that tokens are kept in.
pub mod token_file;

pub use caller::Caller;
pub use gate::Gate;
pub use pin::Pin;
pub use scope::Scope;
pub use token::Token;
pub use token_file::TokenFile;
