//! API tokens: `og_<role>_<64 hex digits>`. The state holds only the SHA-256 of the text; 256 random bits need neither
//! salt nor a slow hash.

use raft_store::command::{Role, Token};
use rand::RngCore;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::secret::Secret;

/// Random part of a token, bytes.
pub const TOKEN_RANDOM_BYTES: usize = 32;
/// Longest text looked at as a token, bytes. An operator's own admin token may have another form than ours.
pub const MAX_TOKEN_TEXT_BYTES: usize = 256;
/// Most characters in a token's name.
pub const MAX_TOKEN_NAME_CHARS: usize = 64;

const PREFIX: &str = "og_";

/// A text that is not a token of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token; tokens read og_<gateway|viewer|editor|admin>_<64 hex digits>")]
pub struct MalformedToken;

/// The role's name in tokens, JSON and messages.
pub const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Gateway => "gateway",
        Role::Viewer => "viewer",
        Role::Editor => "editor",
        Role::Admin => "admin",
    }
}

/// The role with this name.
pub fn role_from_name(name: &str) -> Option<Role> {
    [Role::Gateway, Role::Viewer, Role::Editor, Role::Admin].into_iter().find(|&role| role_name(role) == name)
}

/// Draws a new token text.
pub fn generate(role: Role) -> Secret {
    let mut random = [0_u8; TOKEN_RANDOM_BYTES];
    rand::rng().fill_bytes(&mut random);
    Secret::new(format!("{PREFIX}{}_{}", role_name(role), hex(&random)))
}

/// The role a token text claims. The role that counts is the one stored beside its hash.
///
/// # Errors
/// [`MalformedToken`] when the text does not have the form.
pub fn parse(text: &str) -> Result<Role, MalformedToken> {
    let (role, random) =
        text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).ok_or(MalformedToken)?;
    let hex_digits = random.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if random.len() != 2 * TOKEN_RANDOM_BYTES || !hex_digits {
        return Err(MalformedToken);
    }
    role_from_name(role).ok_or(MalformedToken)
}

/// What is stored of a token text.
pub fn sha256(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// The stored token for a text. Compares with every token, in constant time each, so that the time tells nothing.
pub fn find<'a>(tokens: impl IntoIterator<Item = &'a Token>, text: &str) -> Option<&'a Token> {
    let wanted = sha256(text);
    let mut found = None;
    for token in tokens {
        if bool::from(token.sha256.ct_eq(&wanted)) {
            found = Some(token);
        }
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_tokens_parse_to_their_role_and_differ() {
        for role in [Role::Gateway, Role::Viewer, Role::Editor, Role::Admin] {
            let token = generate(role);
            assert_eq!(parse(token.expose()), Ok(role));
            assert_ne!(token.expose(), generate(role).expose());
        }
    }

    #[test]
    fn other_texts_are_not_tokens() {
        let short = format!("og_admin_{}", "a".repeat(63));
        let upper = format!("og_admin_{}", "A".repeat(64));
        let role = format!("og_root_{}", "a".repeat(64));
        for text in ["", "og_", "og_admin", "og_admin_", &short, &upper, &role] {
            assert_eq!(parse(text), Err(MalformedToken), "{text}");
        }
    }

    #[test]
    fn only_the_exact_text_finds_its_token() {
        let text = generate(Role::Viewer);
        let stored = Token {
            name: "grafana".into(),
            role: Role::Viewer,
            sha256: sha256(text.expose()),
            created_at_ms: 0,
        };
        let tokens = [stored];
        assert_eq!(find(&tokens, text.expose()).map(|token| token.name.as_str()), Some("grafana"));
        assert_eq!(find(&tokens, &text.expose()[1..]), None);
        assert_eq!(find(&tokens, ""), None);
    }
}
