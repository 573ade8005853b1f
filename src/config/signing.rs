//! The keys of `SIGNING_KEYS`: a list of `id=secret`, or `application/id=secret`, with commas between.

use std::collections::{HashMap, HashSet};

use super::check::{ConfigError, bad};
use crate::domain::{
    ApplicationId, KeyName, NamedKeys, SigningKey, Uid,
    ids::DEFAULT_APPLICATION,
    named_keys::{DEFAULT_OWNER, NAMED_KEYS_MAX},
    signature::{SECRET_BYTES, is_standard_secret, signing_warning},
};

const VARIABLE: &str = "SIGNING_KEYS";

/// Reads the list. `own` is the secret that signs what `default` sends without naming a key. Nothing
/// that is told holds a secret. Also returns warnings about secrets that receivers' libraries do not
/// verify with.
pub(super) fn keys(list: &str, own: &str) -> Result<(NamedKeys, Vec<String>), ConfigError> {
    let (mut names, mut warnings) = (HashSet::new(), Vec::new());
    // Two tenants with one secret could sign for each other.
    let mut owners = HashMap::from([(own, DEFAULT_OWNER.to_owned())]);
    let mut keys = Vec::new();
    let items = list.split(',').map(str::trim).enumerate();
    for (index, item) in items.filter(|(_, item)| !item.is_empty()) {
        let place = index + 1;
        let (id, secret) = item.split_once('=').ok_or_else(|| {
            bad(VARIABLE, format!("item {place} is no `id=secret` or `application/id=secret`"))
        })?;
        let (owner, name) = id.split_once('/').unwrap_or((DEFAULT_OWNER, id));
        let owner = owner_of(owner).ok_or_else(|| {
            bad(VARIABLE, format!("item {place} names no application by its id or its uid"))
        })?;
        let name = KeyName::parse(name)
            .map_err(|error| bad(VARIABLE, format!("the id of item {place} {error}")))?;
        let shown = format!("{owner}/{name}");
        if !SECRET_BYTES.contains(&secret.len()) {
            let (least, most) = (SECRET_BYTES.start(), SECRET_BYTES.end());
            let reason = format!("the secret of `{shown}` must be {least} to {most} bytes");
            return Err(bad(VARIABLE, reason));
        }
        if !names.insert(shown.clone()) {
            return Err(bad(VARIABLE, format!("`{shown}` is there twice")));
        }
        if owners.insert(secret, owner.clone()).is_some_and(|other| other != owner) {
            let reason = format!(
                "the secret of `{shown}` is that of another application too (that of `default` is \
                 also WEBHOOK_SECRET): each must have its own, or one could sign for the other"
            );
            return Err(bad(VARIABLE, reason));
        }
        let name_shown = format!("{VARIABLE} ({shown})");
        let warning = base64_warning(&name_shown, secret);
        warnings.extend(warning.or_else(|| signing_warning(&name_shown, secret)));
        let key = SigningKey::from_secret(secret).map_err(|error| bad(VARIABLE, error))?;
        keys.push((owner, name, key));
        if keys.len() > NAMED_KEYS_MAX {
            return Err(bad(VARIABLE, format!("there may be at most {NAMED_KEYS_MAX} keys")));
        }
    }
    Ok((NamedKeys::new(keys), warnings))
}

/// A warning about a secret that says it is base64, and is not.
pub(super) fn base64_warning(name: &str, secret: &str) -> Option<String> {
    let is_mistaken = secret.starts_with("whsec_") && !is_standard_secret(secret);
    is_mistaken.then(|| {
        format!(
            "{name} begins with `whsec_`, but what follows is not the base64 of 24 to 64 bytes: its \
             text signs as it stands, and receivers that decode it will refuse every signature"
        )
    })
}

/// How an application is told: `default`, an id, or a uid.
fn owner_of(text: &str) -> Option<String> {
    match text.parse::<ApplicationId>() {
        Ok(DEFAULT_APPLICATION) => Some(DEFAULT_OWNER.to_owned()),
        Ok(id) => Some(id.to_string()),
        Err(_) => Uid::parse(text).ok().map(|uid| uid.as_str().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "the secret of default";

    #[track_caller]
    fn refused(list: &str, because: &str) {
        let message = keys(list, OWN).unwrap_err().to_string();
        assert!(message.starts_with("SIGNING_KEYS: "), "{message}");
        assert!(message.contains(because), "{message}");
        assert!(!message.contains("hush"), "a secret is shown: {message}");
    }

    #[test]
    fn keys_are_read_each_for_its_application() {
        let acme = ApplicationId::new(1, [1; 10]);
        let list = format!(
            "2026-01=hush-hush-hush-1, acme/k=hush=hush=hush=2/3,{acme}/k2=hush-hush-hush-3,
             {DEFAULT_APPLICATION}/z=hush-hush-hush-4,"
        );
        let (keys, warnings) = keys(&list, OWN).unwrap();
        // Text secrets: each is warned of, without the secret.
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        for (warning, name) in warnings.iter().zip(["default/2026-01", "acme/k"]) {
            assert!(warning.contains(name) && warning.contains("`whsec_` form"), "{warning}");
            assert!(!warning.contains("hush"), "a secret is shown: {warning}");
        }
        let sign = |application, uid, name: &str| {
            let name = KeyName::parse(name).unwrap();
            let keys = keys.of(application, uid, &name);
            keys.map(|keys| keys.newest().hex_body_signature(b"x"))
        };
        let by = |secret| Some(SigningKey::from_secret(secret).unwrap().hex_body_signature(b"x"));
        assert_eq!(sign(DEFAULT_APPLICATION, None, "2026-01"), by("hush-hush-hush-1"));
        assert_eq!(sign(DEFAULT_APPLICATION, None, "z"), by("hush-hush-hush-4"));
        assert_eq!(sign(acme, Some("acme"), "k"), by("hush=hush=hush=2/3"));
        assert_eq!(sign(acme, Some("acme"), "k2"), by("hush-hush-hush-3"));
        assert_eq!(sign(acme, Some("acme"), "2026-01"), None);
    }

    #[test]
    fn contradictions_are_told_without_secrets() {
        refused("hush-hush-hush-1", "item 1");
        refused("k=hush-hush-hush-1,=hush-hush-hush-2", "item 2");
        refused("a b=hush-hush-hush-1", "the id of item 1");
        refused("evt_0192d4e012347abc8def0123456789ab/k=hush-hush-hush-1", "item 1 names no");
        refused("a/b/c=hush-hush-hush-1", "the id of item 1");
        refused("k=hush", "`default/k` must be 8 to 256 bytes");
        refused("k=hush-hush-hush-1,default/k=hush-hush-hush-2", "`default/k` is there twice");
        refused("k=hush-hush-hush-1,acme/k=hush-hush-hush-1", "another application");
        refused(&format!("acme/k={OWN}"), "WEBHOOK_SECRET");
        let many: Vec<_> =
            (0..=NAMED_KEYS_MAX).map(|n| format!("{n}=hush-hush-hush-{n}")).collect();
        refused(&many.join(","), "at most 1000");
        // One's own secret under a name, and no list at all.
        keys(&format!("k={OWN},k2={OWN}"), OWN).unwrap();
        keys(" ", OWN).unwrap();
        let mistaken = keys("k=whsec_not-base64!", OWN).unwrap().1;
        assert!(mistaken[0].starts_with("SIGNING_KEYS (default/k) begins with"), "{mistaken:?}");
        let standard = "k=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        assert!(keys(standard, OWN).unwrap().1.is_empty());
        keys("k=8-bytes!", OWN).unwrap();
    }
}
