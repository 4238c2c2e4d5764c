//! TLS, tokens and Unix sockets.

use std::path::PathBuf;
use std::time::Duration;

use attention_client::{
    Client, ClientBuilder, Code, ComputeRequest, DataType, Error, SessionConfig,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use sha2::{Digest, Sha256};

use crate::places::{OwnServer, nonce};
use crate::values::filled;

async fn compute(client: &Client) -> Result<(), Error> {
    let row = filled(DataType::Float32, &[1, 4], 1);
    client
        .compute(ComputeRequest::new(&row, &row, &row))
        .max_attempts(1)
        .await
        .map(drop)
}

/// A folder that goes with this object.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(nonce());
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, nonce());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key.
fn certificate(issuer: &Issuer, names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(names).unwrap();
    (
        params.signed_by(&key, issuer).unwrap().pem(),
        key.serialize_pem(),
    )
}

#[tokio::test]
async fn tls() {
    let folder = Folder::new();
    let ca = authority();
    let (certificate, key) = certificate(&ca, &["localhost", "127.0.0.1"]);
    let ca_file = folder.write("ca.pem", ca.pem());
    let flags = [
        format!("--tls-cert={}", folder.write("cert.pem", certificate)),
        format!("--tls-key={}", folder.write("key.pem", key)),
    ];
    let Some(server) = OwnServer::start(&flags.each_ref().map(String::as_str)) else {
        return;
    };
    let client = |change: fn(ClientBuilder) -> ClientBuilder| {
        change(Client::builder(&server.address).tls_ca(&ca_file))
            .build()
            .unwrap()
    };
    compute(&client(|builder| builder)).await.unwrap();
    compute(&client(|builder| builder.tls_server_name("localhost")))
        .await
        .unwrap();
    let address = server.address.replace("127.0.0.1", "localhost");
    let by_name = Client::builder(format!("https://{address}")).tls_ca_pem(ca.pem());
    compute(&by_name.build().unwrap()).await.unwrap();
    // Of another name, by another authority, without TLS.
    let error = compute(&client(|builder| builder.tls_server_name("other.example"))).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    let message = error.message();
    assert!(
        message.starts_with("the server's certificate was refused: "),
        "{error}"
    );
    assert!(
        message.ends_with(&format!(" (server {})", server.address)),
        "{error}"
    );
    let stranger = Client::builder(&server.address)
        .tls_ca_pem(authority().pem())
        .build()
        .unwrap();
    let error = compute(&stranger).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("UnknownIssuer"), "{error}");
    let plain = Client::new(&server.address).unwrap();
    let error = compute(&plain).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("it may want TLS"), "{error}");
    // A large answer, in TLS's records.
    let query = filled(DataType::Float32, &[1, 8, 2500, 64], 1);
    let key = filled(DataType::Float32, &[1, 8, 20, 64], 2);
    let request = ComputeRequest::new(query, &key, &key);
    client(|builder| builder).compute(request).await.unwrap();
}

#[tokio::test]
async fn mutual_tls() {
    let folder = Folder::new();
    let (ca, clients) = (authority(), authority());
    let (server_certificate, server_key) = certificate(&ca, &["127.0.0.1"]);
    let flags = [
        format!(
            "--tls-cert={}",
            folder.write("cert.pem", server_certificate)
        ),
        format!("--tls-key={}", folder.write("key.pem", server_key)),
        format!(
            "--tls-client-ca={}",
            folder.write("clients.pem", clients.pem())
        ),
    ];
    let Some(server) = OwnServer::start(&flags.each_ref().map(String::as_str)) else {
        return;
    };
    let builder = || Client::builder(&server.address).tls_ca_pem(ca.pem());
    let (mine, my_key) = certificate(&clients, &["client"]);
    let with_files = builder().tls_identity(
        folder.write("mine.pem", &mine),
        folder.write("mine.key", &my_key),
    );
    compute(&with_files.build().unwrap()).await.unwrap();
    compute(&builder().tls_identity_pem(mine, my_key).build().unwrap())
        .await
        .unwrap();
    let error = compute(&builder().build().unwrap()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let (other, other_key) = certificate(&ca, &["client"]);
    let stranger = builder()
        .tls_identity_pem(other, other_key)
        .build()
        .unwrap();
    assert_eq!(
        compute(&stranger).await.unwrap_err().code(),
        Code::Unavailable
    );
}

fn line(token: &str, tenant: &str) -> String {
    let sum: String = Sha256::digest(token)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{sum} {tenant}\n")
}

#[tokio::test]
async fn tokens() {
    let folder = Folder::new();
    let tokens = folder.write("tokens", line("old-token", "t") + &line("new-token", "t"));
    let flag = format!("--tokens={tokens}");
    let Some(server) = OwnServer::start(&[&flag]) else {
        return;
    };
    let none = Client::new(&server.address).unwrap();
    let error = compute(&none).await.unwrap_err();
    assert_eq!(
        (error.code(), error.reason()),
        (Code::Unauthenticated, Some("TOKEN_MISSING"))
    );
    let wrong = Client::builder(&server.address)
        .token("wrong-token")
        .build()
        .unwrap();
    let error = compute(&wrong).await.unwrap_err();
    assert_eq!(error.reason(), Some("TOKEN_UNKNOWN"));
    assert!(!format!("{error} {error:?} {wrong:?}").contains("wrong-token"));

    let file = folder.write("token", "old-token\n");
    let client = Client::builder(&server.address)
        .token_file(&file)
        .build()
        .unwrap();
    compute(&client).await.unwrap();
    let session = client
        .create_session(SessionConfig::new(1, 4))
        .await
        .unwrap();
    let token = filled(DataType::Float32, &[1, 1, 4], 1);
    session.step(0, &token, &token, &token).await.unwrap();
    // The token is replaced; the server forgets the old one. The stream of the step
    // began with that.
    folder.write("token", "new-token\n");
    folder.write("tokens", line("new-token", "t"));
    let mut refused = 0;
    for _ in 0..100 {
        let old = Client::builder(&server.address)
            .token("old-token")
            .build()
            .unwrap();
        if compute(&old).await.is_err() {
            refused += 1;
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(refused, 1, "the server still takes the old token");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    session.step(0, &token, &token, &token).await.unwrap();
    compute(&client).await.unwrap();
}

#[tokio::test]
async fn tokens_stay_on_this_machine_without_tls() {
    for target in [
        "192.0.2.1:50051",
        "[2001:db8::1]:50051",
        "http://192.0.2.1:50051",
    ] {
        let error = Client::builder(target)
            .token("hush-hush")
            .build()
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(!error.to_string().contains("hush-hush"));
        let allowed = Client::builder(target).token("x").allow_plaintext_token();
        assert!(allowed.build().is_ok());
        assert!(Client::new(target).is_ok());
    }
    // A name that leads elsewhere: only the connection tells.
    let Some(own) = own_address() else { return };
    let flags = [format!("--listen={own}:0"), "--allow-plaintext".to_owned()];
    let Some(server) = OwnServer::start(&flags.each_ref().map(String::as_str)) else {
        return;
    };
    let port = server.address.rsplit_once(':').unwrap().1;
    // Which getaddrinfo takes for a name of this address, and Rust for no address.
    let target = format!("{}:{port}", u32::from(own));
    let client = Client::builder(&target).token("hush-hush").build().unwrap();
    let error = client.health("").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(!format!("{error} {error:?}").contains("hush-hush"));
    Client::new(&target).unwrap().health("").await.unwrap();
    let allowed = Client::builder(&target).token("x").allow_plaintext_token();
    allowed.build().unwrap().health("").await.unwrap();
}

/// An address of this machine that is not on loopback.
fn own_address() -> Option<std::net::Ipv4Addr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok();
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => {
            Some(address)
        }
        _ => {
            eprintln!("skipped in part: this machine has no address but loopback");
            None
        }
    }
}

#[tokio::test]
async fn unix_sockets() {
    let folder = Folder::new();
    let path = folder.0.join("socket");
    let listen = format!("--listen=unix:{}", path.display());
    let tokens = format!("--tokens={}", folder.write("tokens", line("a-token", "t")));
    let Some(_server) = OwnServer::start(&[&listen, &tokens]) else {
        return;
    };
    for target in [
        format!("unix:{}", path.display()),
        format!("unix://{}", path.display()),
    ] {
        let client = Client::builder(target).token("a-token").build().unwrap();
        compute(&client).await.unwrap();
    }
    let nowhere = Client::new("unix:/nowhere/socket").unwrap();
    assert_eq!(
        compute(&nowhere).await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[test]
fn options_that_cannot_be_used() {
    let builder = || Client::builder("127.0.0.1:1");
    let folder = Folder::new();
    let no_pem = folder.write("no.pem", "hello");
    for (option, builder) in [
        ("token, token_file", builder().token("a").token_file("/b")),
        ("token", builder().token("two words")),
        ("token_file", builder().token_file("/no/such/file")),
        (
            "token_file",
            builder().token_file(folder.write("empty", "\n")),
        ),
        ("tls_ca", builder().tls_ca("/no/such/file")),
        ("tls_ca", builder().tls_ca(&no_pem)),
        (
            "tls_identity",
            builder().tls().tls_identity(&no_pem, &no_pem),
        ),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().starts_with(option), "{error}");
    }
}
