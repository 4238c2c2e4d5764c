//! Generates the messages and the server's trait from ../pipeline.proto.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../pipeline.proto");
    let files = protox::compile(["pipeline.proto"], [".."])?;
    tonic_prost_build::configure()
        .build_client(false)
        .compile_fds(files)?;
    Ok(())
}
