//! Where servers are.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// The value of an environment variable, or, after saying so, none.
pub fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    if value.is_none() {
        eprintln!("skipped: {name} is not set");
    }
    value
}

/// The value of an environment variable; ends the test where it is not set.
macro_rules! need {
    ($name:expr) => {
        match $crate::places::variable($name) {
            Some(value) => value,
            None => return,
        }
    };
}
pub(crate) use need;

pub fn vectors(file: &str) -> Option<serde_json::Value> {
    let path = format!("{}/{file}", variable("ATTENTION_TEST_VECTORS")?);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    Some(serde_json::from_str(&text).unwrap())
}

/// A body by HTTP.
pub fn http_get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{head}");
    body.to_owned()
}

/// The calls of a method that ended with this code, as the server counts them.
pub fn calls_total(http: &str, method: &str, code: &str) -> u64 {
    let name = format!("attention_calls_total{{code=\"{code}\",method=\"{method}\"}} ");
    let metrics = http_get(http, "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

/// A server of a test's own. It ends with this object.
pub struct OwnServer {
    process: Child,
    pub address: String,
    /// Of `--http-listen`, where that is a flag.
    pub http: String,
}

impl OwnServer {
    /// None, after saying so, where the program is not named.
    pub fn start(flags: &[&str]) -> Option<Self> {
        let binary = variable("ATTENTION_TEST_SERVER_BINARY")?;
        let mut command = Command::new(binary);
        if !flags.iter().any(|flag| flag.starts_with("--listen")) {
            command.arg("--listen=127.0.0.1:0");
        }
        let mut process = command
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut address = || {
            let line = lines.next().unwrap().unwrap();
            line.rsplit_once(' ').unwrap().1.replace("http://", "")
        };
        let with_http = flags.iter().any(|flag| flag.starts_with("--http-listen"));
        Some(Self {
            address: address(),
            http: if with_http { address() } else { String::new() },
            process,
        })
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Asks it to end when its calls have.
    pub fn drain(&self) {
        let status = Command::new("kill")
            .arg(self.process.id().to_string())
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Another text each time.
pub fn nonce() -> String {
    static NEXT: OnceLock<std::sync::atomic::AtomicU64> = OnceLock::new();
    let number = NEXT
        .get_or_init(Default::default)
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let time = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    format!("rust-{}-{}-{number}", std::process::id(), time.as_nanos())
}
