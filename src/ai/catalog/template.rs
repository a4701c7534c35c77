//! Base URLs with variables in braces.

use url::Url;

/// The names in braces, in order.
pub fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
}

/// Puts values in the place of names. What has no value is named in the error.
pub fn fill(text: &str, value: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or("`{` is not closed by `}`")?;
        filled.push_str(before);
        filled.push_str(&value(name).ok_or_else(|| format!("the variable `{name}` has no value"))?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Whether a URL, filled in, may be called: nothing may hide in it that sends calls elsewhere or cuts paths off.
pub fn check_url(text: &str) -> Result<(), String> {
    if text.ends_with('/') {
        return Err("must not end with `/`".into());
    }
    // The parser would drop some of these without a word.
    if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
        return Err("must be ASCII without spaces".into());
    }
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if !matches!(url.scheme(), "https" | "http") {
        return Err("must begin with `https://` or `http://`".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not hold `?` or `#`".into());
    }
    Ok(())
}
