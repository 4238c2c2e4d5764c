package attentionpb_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCurrent: the checked-in code is what the repository's protos and the pinned
// plugins give. PROTOC is the command of protoc if it has another name.
func TestCurrent(t *testing.T) {
	if _, err := os.Stat("../../../proto/attention/v1/attention.proto"); err != nil {
		t.Skip("not in the repository: there are no protos")
	}
	if _, err := exec.LookPath("protoc"); err != nil && os.Getenv("PROTOC") == "" {
		t.Skip("there is no protoc, and PROTOC names none")
	}
	folder := t.TempDir()
	if output, err := exec.Command("../generate.sh", folder).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	made, err := filepath.Glob(filepath.Join(folder, "*.pb.go"))
	if err != nil || len(made) != 4 {
		t.Fatalf("got %v, %v", made, err)
	}
	for _, file := range made {
		name := filepath.Base(file)
		if !bytes.Equal(withoutVersions(t, file), withoutVersions(t, name)) {
			t.Errorf("%s is not current: run client/go/generate.sh", name)
		}
	}
}

// withoutVersions is a file without the lines that tell the versions of the tools.
func withoutVersions(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, line := range strings.Split(string(data), "\n") {
		if !strings.HasPrefix(line, "// \tprotoc") && !strings.HasPrefix(line, "// - protoc") {
			kept = append(kept, line)
		}
	}
	return []byte(strings.Join(kept, "\n"))
}
