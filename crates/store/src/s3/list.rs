//! Listing a bucket. S3 lists keys in ascending order of their UTF-8 bytes; a service that does
//! not is refused, since a page that ends too early would hide objects.

use super::client::Client;
use super::errors;
use crate::error::{action, failed};
use crate::{Listing, ObjectMeta, ObjectPath, StoreError};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as Key;
use std::collections::BTreeSet;

/// Keys one request may ask for.
const KEYS_MAX: usize = 1000;

pub(super) async fn level(client: &Client, prefix: Option<&ObjectPath>) -> Result<Listing, StoreError> {
    let begin = client.prefix_text(prefix);
    let mut objects = Vec::new();
    let mut prefixes = BTreeSet::new();
    let mut page_token = None;
    loop {
        let options = PaginatedListOptions {
            delimiter: Some("/".into()),
            max_keys: Some(KEYS_MAX),
            page_token,
            ..PaginatedListOptions::default()
        };
        let page = request(client, &begin, options).await?;
        objects.extend(page.result.objects.iter().filter_map(|meta| below(client, &begin, meta)));
        prefixes.extend(page.result.common_prefixes.iter().filter_map(|key| client.path(key)));
        page_token = page.page_token;
        if page_token.is_none() {
            break;
        }
    }
    objects.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Listing { objects, prefixes: prefixes.into_iter().collect() })
}

pub(super) async fn page(
    client: &Client,
    prefix: Option<&ObjectPath>,
    after: Option<&ObjectPath>,
    limit: usize,
) -> Result<Vec<ObjectMeta>, StoreError> {
    let begin = client.prefix_text(prefix);
    let mut found: Vec<ObjectMeta> = Vec::new();
    let mut offset = after.map(|after| client.key_text(after));
    let mut page_token = None;
    while found.len() < limit {
        let options = PaginatedListOptions {
            offset: offset.take(),
            max_keys: Some(KEYS_MAX.min(limit - found.len())),
            page_token,
            ..PaginatedListOptions::default()
        };
        let page = request(client, &begin, options).await?;
        for meta in &page.result.objects {
            let Some(meta) = below(client, &begin, meta) else { continue };
            match found.last().map(|last| &last.path).or(after) {
                Some(last) if meta.path <= *last => {
                    // A "directory" that some tool made is an empty object `name/`.
                    if meta.size > 0 {
                        let reason = format!("the service lists {} after {last}: not in order", meta.path);
                        return Err(failed(&client.url, &begin, action::LIST, reason));
                    }
                }
                _ => found.push(meta),
            }
        }
        page_token = page.page_token;
        if page_token.is_none() {
            break;
        }
    }
    found.truncate(limit);
    Ok(found)
}

async fn request(
    client: &Client,
    begin: &str,
    options: PaginatedListOptions,
) -> Result<object_store::list::PaginatedListResult, StoreError> {
    let begin = (!begin.is_empty()).then_some(begin);
    let page = client.bucket.list_paginated(begin, options).await;
    let page = page.map_err(|error| errors::map(&client.url, begin.unwrap_or_default(), action::LIST, error))?;
    client.saw_bucket();
    Ok(page)
}

/// The object a key names, if it is one of ours and lies below `begin`.
fn below(client: &Client, begin: &str, meta: &object_store::ObjectMeta) -> Option<ObjectMeta> {
    let key: &Key = &meta.location;
    if !key.as_ref().starts_with(begin) {
        return None;
    }
    Some(client.meta(client.path(key)?, meta))
}
