//! Who calls.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::error::{Code, Error};

/// Longer than any token, and short enough for a header.
const LONGEST: usize = 16 << 10;
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The header of a token that is given, or stands in a file which may be replaced.
pub(crate) struct TokenSource {
    /// None: the token does not change.
    path: Option<PathBuf>,
    last: Mutex<Last>,
}

struct Last {
    header: HeaderValue,
    read_at: Instant,
}

impl TokenSource {
    pub(crate) fn of(token: &str) -> Result<Self, Error> {
        let header = header_of(token).map_err(|what| wrong(format!("token: {what}")))?;
        Ok(Self::new(None, header))
    }

    pub(crate) fn of_file(path: &Path) -> Result<Self, Error> {
        let header = read(path).map_err(|what| wrong(format!("token_file: {what}")))?;
        // A pipe is read once.
        let again = path.is_file().then(|| path.to_owned());
        Ok(Self::new(again, header))
    }

    fn new(path: Option<PathBuf>, header: HeaderValue) -> Self {
        let read_at = Instant::now();
        Self {
            path,
            last: Mutex::new(Last { header, read_at }),
        }
    }

    /// The header `authorization`. A file that holds no token leaves the last one
    /// in use.
    pub(crate) fn header(&self) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(path) = &self.path
            && last.read_at.elapsed() >= READ_AGAIN_AFTER
        {
            last.read_at = Instant::now();
            if let Ok(header) = read(path) {
                last.header = header;
            }
        }
        last.header.clone()
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource(..)")
    }
}

fn wrong(message: String) -> Error {
    Error::local(Code::InvalidArgument, message)
}

fn read(path: &Path) -> Result<HeaderValue, String> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))?;
    header_of(text.trim()).map_err(|what| format!("{name}: {what}"))
}

/// What is wrong is told without the token.
fn header_of(token: &str) -> Result<HeaderValue, &'static str> {
    if token.is_empty() {
        return Err("is empty, wanted a token");
    }
    if token.len() > LONGEST {
        return Err("is longer than 16384 bytes");
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("has characters other than printable ASCII, or white space within the token");
    }
    let mut header =
        HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| "cannot stand in a header")?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_checked_and_never_shown() {
        for bad in [
            "",
            "two words",
            "line\nbreak",
            "ümlaut",
            &"x".repeat(LONGEST + 1),
        ] {
            let error = TokenSource::of(bad).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(bad.is_empty() || !error.message().contains(bad));
        }
        let source = TokenSource::of("hush").unwrap();
        assert_eq!(source.header(), "Bearer hush");
        assert!(!format!("{source:?} {:?}", source.header()).contains("hush"));
    }

    #[test]
    fn files_are_read_again_a_second_later() {
        let folder = std::env::temp_dir().join(format!("attention-token-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("token");
        std::fs::write(&path, "first\n").unwrap();
        let source = TokenSource::of_file(&path).unwrap();
        std::fs::write(&path, "second\n").unwrap();
        assert_eq!(source.header(), "Bearer first");
        let age = |source: &TokenSource| {
            let mut last = source.last.lock().unwrap();
            last.read_at -= READ_AGAIN_AFTER;
        };
        age(&source);
        assert_eq!(source.header(), "Bearer second");
        std::fs::remove_file(&path).unwrap();
        age(&source);
        assert_eq!(source.header(), "Bearer second");
        assert!(TokenSource::of_file(&path).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
