//! Generates the protocol's messages from the .proto files of this crate. No
//! protoc is needed: protox compiles them.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(
        ["attention/v1/attention.proto", "attention/v1/session.proto"],
        ["proto"],
    )?;
    let stubs = std::env::var_os("CARGO_FEATURE_STUBS").is_some();
    tonic_prost_build::configure()
        .bytes(".")
        .build_server(false)
        .build_client(stubs)
        .compile_fds(files)?;
    Ok(())
}
