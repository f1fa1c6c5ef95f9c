// Command mailhook runs the webhook engine of a mail platform's PostgreSQL. Each command is a file of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args)
	stop()
	os.Exit(code)
}

// run answers the exit code: 0, 1 failed, 2 usage.
func run(ctx context.Context, args []string) int {
	// net/http writes there what a receiver sent unasked, which may be anything.
	log.SetOutput(io.Discard)
	app := newApp()
	err := app.RunContext(ctx, flagsFirst(app, args))
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "mailhook:", inert(oneLine(err)))
	var usage usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

// oneLine joins the lines of an error, each once: a failed connection comes with a line for each address tried.
func oneLine(err error) string {
	var lines []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, " ")
}

// flagsFirst moves the flags of a command before its arguments, where urfave/cli looks for them, so that
// mailhook emit email.clicked --account acme means what it says.
func flagsFirst(app *cli.App, args []string) []string {
	command, words := commandOf(app, args)
	if command == nil || command.ArgsUsage == "" {
		return args
	}
	takesValue := map[string]bool{}
	for _, f := range command.Flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, name := range f.Names() {
			takesValue[name] = !isBool
		}
	}
	if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
		return append(slices.Clone(args[:words]), "--help")
	}
	flags, rest := slices.Clone(args[:words]), []string{}
	for i := words; i < len(args); i++ {
		name, isFlag := strings.CutPrefix(args[i], "-")
		if args[i] == "--" || !isFlag {
			rest = append(rest, args[i])
			continue
		}
		flags = append(flags, args[i])
		if takesValue[strings.TrimPrefix(name, "-")] && i+1 < len(args) {
			i++
			flags = append(flags, args[i])
		}
	}
	return append(flags, rest...)
}

// commandOf is the command that the first words of args name, nil for none, and how many words those are.
func commandOf(app *cli.App, args []string) (command *cli.Command, words int) {
	commands := app.Commands
	for words = 1; words < len(args); words++ {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[words]) })
		if i < 0 {
			break
		}
		command, commands = commands[i], commands[i].Subcommands
	}
	return command, words
}

// A usageError is the caller's: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func newApp() *cli.App {
	onUsageError := func(_ *cli.Context, err error, _ bool) error {
		return usageError{fmt.Errorf("%w (see --help)", err)}
	}
	app := &cli.App{
		Name:  "mailhook",
		Usage: "signed webhooks for every email event, out of your own PostgreSQL",
		Description: `The host writes events in its own transaction:

   INSERT INTO mailhook.outbox (event_type, recipient, message_id) VALUES ('email.delivered', 'r@example.com', 'abc');

To see it work:             mailhook demo
To install it:              mailhook migrate up
To run it:                  mailhook serve
To make an API key:         mailhook key create`,
		Writer:          inertWriter{os.Stdout},
		ErrWriter:       inertWriter{os.Stderr},
		Version:         version(),
		HideVersion:     true, // the library's flag prints it in another way than the command does
		Flags:           []cli.Flag{&cli.BoolFlag{Name: "version", Usage: "print the version", DisableDefaultText: true}},
		HideHelpCommand: true,
		OnUsageError:    onUsageError,
		ExitErrHandler:  func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if c.Bool("version") {
				return printVersion(c)
			}
			if c.Args().Present() {
				return usagef("there is no command %q (see mailhook --help)", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			demoCommand(), migrateCommand(), serveCommand(), workerCommand(), apiCommand(), keyCommand(), emitCommand(),
			listenCommand(), adapterCommand(), statusCommand(), deliveryCommand(), eraseCommand(), versionCommand(),
		},
	}
	for _, c := range app.Commands {
		prepare(c, onUsageError)
	}
	return app
}

// prepare gives every command the same manners.
func prepare(c *cli.Command, onUsageError cli.OnUsageErrorFunc) {
	c.OnUsageError = onUsageError
	c.HideHelpCommand = true
	if action := c.Action; action != nil && c.ArgsUsage == "" {
		c.Action = func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return usagef("%s takes no argument, but got %q (see --help)", c.FullName(), ctx.Args().First())
			}
			return action(ctx)
		}
	}
	if action := c.Action; action != nil {
		c.Action = func(ctx *cli.Context) error { return explained(ctx, action(ctx)) }
	}
	for _, sub := range c.Subcommands {
		prepare(sub, onUsageError)
	}
	if len(c.Subcommands) > 0 && c.Action == nil {
		c.Action = func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return usagef("%s has no command %q (see mailhook %s --help)", c.Name, ctx.Args().First(), c.Name)
			}
			return usagef("say which: see mailhook %s --help", c.Name)
		}
	}
}
