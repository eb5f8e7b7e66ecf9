//! The page for people: one self-contained document, whose content security policy forbids loading anything from
//! elsewhere.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The document and its content security policy.
pub(super) struct Page {
    pub(super) document: String,
    pub(super) policy: String,
}

pub(super) static PAGE: LazyLock<Page> = LazyLock::new(|| Page {
    document: include_str!("page.html").replacen("/*page.css*/", STYLE, 1).replacen(
        "/*page.js*/",
        SCRIPT,
        1,
    ),
    policy: format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        csp_source(STYLE),
        csp_source(SCRIPT)
    ),
});

/// Formats the hash of an inline element's content as a CSP source.
fn csp_source(content: &str) -> String {
    format!("sha256-{}", STANDARD.encode(digest(&SHA256, content.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_and_script_are_inlined_once_and_unchanged() {
        for (part, open, close) in
            [(STYLE, "<style>", "</style>"), (SCRIPT, "<script type=\"module\">", "</script>")]
        {
            assert_eq!(PAGE.document.matches(part).count(), 1);
            assert!(PAGE.document.contains(&format!("{open}{part}{close}")), "{open}");
            assert!(!part.contains(close));
        }
        // Nothing from elsewhere.
        assert!(!PAGE.document.contains("https://") && !PAGE.document.contains("src=\"http"));
    }
}
