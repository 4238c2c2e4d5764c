package attention

// Version of this package, which is also that of the server that it comes with.
const Version = "0.1.0"
