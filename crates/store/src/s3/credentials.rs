//! Where credentials come from: the options, the environment, a profile, then what the machine
//! offers (web identity, container, instance metadata), which `object_store` fetches and renews.

use super::client::config_key;
use super::options::S3Options;
use object_store::aws::AmazonS3Builder;
use std::collections::HashMap;

/// What of the environment leads to credentials of the machine.
const MACHINE_VARIABLES: [&str; 7] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

pub(super) fn apply(mut builder: AmazonS3Builder, options: &S3Options) -> Result<AmazonS3Builder, String> {
    let env = |name: &str| options.environment.get(name).map(|v| v.expose()).filter(|value| !value.is_empty());
    let explicit = Keys {
        id: options.access_key_id.as_deref(),
        secret: options.secret_access_key.as_ref().map(|secret| secret.expose()),
        token: options.session_token.as_ref().map(|token| token.expose()),
    };
    if let Some(keys) = explicit.complete("access-key-id", "secret-access-key")? {
        return Ok(keys.give(builder));
    }
    let from_env =
        Keys { id: env("AWS_ACCESS_KEY_ID"), secret: env("AWS_SECRET_ACCESS_KEY"), token: env("AWS_SESSION_TOKEN") };
    if options.profile.is_none()
        && let Some(keys) = from_env.complete("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")?
    {
        return Ok(keys.give(builder));
    }
    let named = options.profile.as_deref().or(env("AWS_PROFILE"));
    let file = options.credentials_file.as_ref().map(|file| parse_profile(file.expose(), named.unwrap_or("default")));
    match (file.flatten(), named) {
        (Some(profile), name) => {
            let name = name.unwrap_or("default");
            let get = |key: &str| profile.get(key).map(String::as_str);
            let keys = Keys {
                id: get("aws_access_key_id"),
                secret: get("aws_secret_access_key"),
                token: get("aws_session_token"),
            };
            let keys = keys
                .complete("aws_access_key_id", "aws_secret_access_key")
                .map_err(|reason| format!("profile {name}: {reason}"))?;
            if let Some(keys) = keys {
                return Ok(keys.give(builder));
            }
        }
        (None, Some(name)) => {
            return Err(format!("the profile {name:?} is not in the credentials file, or there is no such file"));
        }
        (None, None) => {}
    }
    for name in MACHINE_VARIABLES {
        if let Some(value) = env(name) {
            builder = builder.with_config(config_key(&name.to_ascii_lowercase())?, value);
        }
    }
    Ok(builder)
}

struct Keys<'a> {
    id: Option<&'a str>,
    secret: Option<&'a str>,
    token: Option<&'a str>,
}

impl<'a> Keys<'a> {
    /// `None` when neither part is there; an error when one is.
    fn complete(self, id_name: &str, secret_name: &str) -> Result<Option<Self>, String> {
        match (self.id, self.secret) {
            (Some(_), Some(_)) => Ok(Some(self)),
            (None, None) => Ok(None),
            (Some(_), None) => Err(format!("{id_name} is given without {secret_name}")),
            (None, Some(_)) => Err(format!("{secret_name} is given without {id_name}")),
        }
    }

    fn give(self, mut builder: AmazonS3Builder) -> AmazonS3Builder {
        if let (Some(id), Some(secret)) = (self.id, self.secret) {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        }
        match self.token {
            Some(token) => builder.with_token(token),
            None => builder,
        }
    }
}

/// The settings of one `[section]` of an AWS credentials file.
fn parse_profile(text: &str, profile: &str) -> Option<HashMap<String, String>> {
    let mut found = None;
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let name = section.trim();
            inside = name == profile || name.strip_prefix("profile ").map(str::trim) == Some(profile);
            if inside {
                found.get_or_insert_with(HashMap::new);
            }
        } else if inside
            && let Some((key, value)) = line.split_once('=')
            && let Some(settings) = found.as_mut()
        {
            settings.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
# people write comments
[default]
aws_access_key_id = DEF
aws_secret_access_key=s3cr/et+=

[profile other]
AWS_ACCESS_KEY_ID=OTH
; and more
aws_secret_access_key = x
aws_session_token = t
[empty]
";

    #[test]
    fn profiles_are_read() {
        let default = parse_profile(FILE, "default").unwrap();
        assert_eq!((&*default["aws_access_key_id"], &*default["aws_secret_access_key"]), ("DEF", "s3cr/et+="));
        let other = parse_profile(FILE, "other").unwrap();
        assert_eq!((&*other["aws_access_key_id"], &*other["aws_session_token"]), ("OTH", "t"));
        assert!(parse_profile(FILE, "empty").unwrap().is_empty());
        assert_eq!(parse_profile(FILE, "missing"), None);
    }
}
