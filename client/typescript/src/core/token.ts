/** Who calls: tokens, and where they may go. */

/** @internal */
export function checkToken(name: string, token: string): string {
  if (!/^[A-Za-z0-9\-._~+/]+=*$/.test(token) || token.length > 4096) {
    // Without the token itself.
    throw new TypeError(
      `${name}: got no token, wanted 1 to 4096 letters, digits and -._~+/, with = at the end`,
    );
  }
  return token;
}

/** Whether an IP address leads to this machine alone. @internal */
export function isLoopbackAddress(address: string): boolean {
  const ipv4 = address.toLowerCase().replace(/^::ffff:/, "");
  return /^127\.\d+\.\d+\.\d+$/.test(ipv4) || /^(0*:)*0*:?0*1$/.test(address.replace(/^\[|\]$/g, ""));
}
