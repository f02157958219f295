//! What an S3 service means by its answers.

use crate::StoreError;
use object_store::Error;
use object_store::client::HttpError;

/// What a 404 is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// The object.
    Object,
    /// Nothing is said; the answer has no text, as for HEAD.
    Unsaid,
    /// The bucket, the upload, or a server that is no S3.
    Other,
}

pub(super) fn missing(error: &Error) -> Option<Missing> {
    if !matches!(error, Error::NotFound { .. }) {
        return None;
    }
    let text = full_text(error);
    if text.contains("NoSuchKey") {
        return Some(Missing::Object);
    }
    // What follows the status is the answer's text.
    let body = text.split("404 Not Found:").nth(1).unwrap_or_default();
    if body.trim().is_empty() { Some(Missing::Unsaid) } else { Some(Missing::Other) }
}

/// The object was there already: 412 (304 from some services).
pub(super) fn is_exists(error: &Error) -> bool {
    match error {
        // `object_store` says "already exists" for 409 as well, which only means "at the same
        // moment"; for the real thing its cause is the failed precondition.
        Error::AlreadyExists { source, .. } => source.downcast_ref::<Error>().is_some(),
        Error::Precondition { .. } | Error::NotModified { .. } => true,
        _ => false,
    }
}

/// The condition of a completion failed: the object is there (412).
pub(super) fn is_precondition(error: &Error) -> bool {
    matches!(error, Error::Precondition { .. }) || is_exists(error)
}

/// Another request for the same object at the same moment: 409.
pub(super) fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::AlreadyExists { .. }) && !is_exists(error)
}

/// The connection failed; whether the request was done is unknown.
pub(super) fn is_transport(error: &Error) -> bool {
    matches!(error, Error::Generic { .. })
        && std::iter::successors(std::error::Error::source(error), |cause| cause.source())
            .any(|cause| cause.is::<HttpError>())
}

/// The range asked for does not lie inside the object: 416.
pub(super) fn is_unsatisfiable_range(error: &Error) -> bool {
    matches!(error, Error::Generic { .. }) && !is_transport(error) && {
        let text = full_text(error);
        text.contains("status code: 416") || text.contains("InvalidRange")
    }
}

pub(super) fn is_missing_upload(error: &Error) -> bool {
    full_text(error).contains("NoSuchUpload")
}

/// The store's error for an answer. A 404 becomes [`StoreError::Failed`]; who knows that it is
/// about the object says "not found" before coming here.
pub(super) fn map(url: &str, path: impl ToString, action: &'static str, error: Error) -> StoreError {
    let (store, path) = (url.to_owned(), path.to_string());
    let text = full_text(&error);
    if ["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507 "].iter().any(|code| text.contains(code)) {
        return StoreError::Full { store, path };
    }
    // Errors of listings come without their status sorted out.
    let denied = matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
        || ["status code: 403", "status code: 401"].iter().any(|status| text.contains(status));
    let source = explain(&error).into();
    if denied {
        StoreError::Denied { store, path, action, source }
    } else {
        StoreError::Failed { store, path, action, source }
    }
}

/// The service's own words, short, and what to do about it.
pub(super) fn explain(error: &Error) -> String {
    let text = full_text(error);
    let said = match (element(&text, "Code"), element(&text, "Message")) {
        (Some(code), Some(message)) => format!("the service answered {code}: {message}"),
        (Some(code), None) => format!("the service answered {code}"),
        _ => text.clone(),
    };
    match hint(&text) {
        Some(hint) => format!("{said} ({hint})"),
        None => said,
    }
}

fn hint(text: &str) -> Option<&'static str> {
    let hints = [
        ("NoSuchBucket", "the bucket does not exist: create it, or correct its name, the region or the endpoint"),
        ("InvalidAccessKeyId", "the access key is not known there"),
        ("SignatureDoesNotMatch", "the secret access key is wrong"),
        ("RequestTimeTooSkewed", "this host's clock is wrong"),
        ("ExpiredToken", "the session token has expired"),
        ("AuthorizationHeaderMalformed", "the bucket is probably in another region; set region"),
        ("PermanentRedirect", "the bucket is in another region; set region"),
        ("without LOCATION", "the bucket is in another region; set region"),
        ("AccessDenied", "missing objects are answered so too unless s3:ListBucket is granted"),
        ("SlowDown", "the service limits requests; it was tried again for a while"),
        ("404 Not Found", "does the endpoint belong to an S3 service?"),
        ("169.254.169.254", "no credentials were given and this machine offers none"),
        ("UnknownIssuer", "set ca-file to the certificate of the service's authority"),
    ];
    hints.into_iter().find_map(|(sign, hint)| text.contains(sign).then_some(hint))
}

/// An error with its causes, each said once.
fn full_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The text of the first XML element of that name.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_found(text: &str) -> Error {
        Error::NotFound { path: "a/b".to_owned(), source: text.to_owned().into() }
    }

    #[test]
    fn a_404_is_about_the_object_only_when_the_service_says_so() {
        let status = "Server returned non-2xx status code: 404 Not Found: ";
        let check = |body: &str, expect| assert_eq!(missing(&not_found(&format!("{status}{body}"))), Some(expect));
        check("<Error><Code>NoSuchKey</Code></Error>", Missing::Object);
        check("<Error><Code>NoSuchBucket</Code></Error>", Missing::Other);
        check("<html>no such page</html>", Missing::Other);
        check("", Missing::Unsaid);
    }

    #[test]
    fn answers_are_explained() {
        let denied = Error::PermissionDenied {
            path: "a".to_owned(),
            source: "403: <Error><Code>SignatureDoesNotMatch</Code><Message>No.</Message></Error>".into(),
        };
        let mapped = map("s3://b", "a", "read", denied);
        assert!(matches!(mapped, StoreError::Denied { .. }));
        let text = mapped.to_string();
        assert!(text.contains("SignatureDoesNotMatch: No. (the secret access key is wrong)"), "{text}");
        let full = Error::Generic { store: "S3", source: "<Code>XMinioStorageFull</Code>".into() };
        assert!(matches!(map("s3://b", "a", "write", full), StoreError::Full { .. }));
    }
}
