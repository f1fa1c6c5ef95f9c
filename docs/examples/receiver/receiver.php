<?php

// A receiver of mailhook's webhooks with PHP's own functions alone.
//
//   WEBHOOK_SECRET=whsec_... PORT=8000 php receiver.php
//
// From the command line it starts PHP's built-in server for itself. Behind a web server
// it is used as it is, with WEBHOOK_SECRET in the environment of the PHP process.

declare(strict_types=1);

// begin verify

/** Returns the key bytes that a secret stands for. */
function keyOf(string $secret): string
{
    $key = str_starts_with($secret, 'whsec_')
        ? base64_decode(substr($secret, strlen('whsec_')), true)
        : $secret;
    if ($key === false || $key === '') {
        throw new InvalidArgumentException('the secret is empty, or not base64 after whsec_');
    }
    return $key;
}

/**
 * Throws unless the request was signed with the key within five minutes of now.
 * The server array is $_SERVER; the body is the bytes as received, before any JSON parser.
 */
function verify(string $key, array $server, string $body, int $now): void
{
    $id = $server['HTTP_WEBHOOK_ID'] ?? '';
    $sentAt = $server['HTTP_WEBHOOK_TIMESTAMP'] ?? '';
    $signatures = $server['HTTP_WEBHOOK_SIGNATURE'] ?? '';
    if ($id === '' || $sentAt === '' || $signatures === '') {
        throw new RuntimeException('a webhook header is missing');
    }
    if (!preg_match('/^[0-9]+$/D', $sentAt)) {
        throw new RuntimeException('webhook-timestamp is not a number');
    }
    if (abs($now - (int) $sentAt) > 300) {
        throw new RuntimeException('webhook-timestamp is more than five minutes off');
    }
    $want = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$sentAt.$body", $key, true));
    foreach (explode(' ', $signatures) as $signature) {
        if (hash_equals($want, $signature)) {
            return;
        }
    }
    throw new RuntimeException('no signature matches');
}

// end verify

function answer(int $status, string $text = ''): never
{
    http_response_code($status);
    header('Content-Type: text/plain');
    exit($text);
}

$key = keyOf(getenv('WEBHOOK_SECRET') ?: '');

if (PHP_SAPI === 'cli') {
    $port = (int) (getenv('PORT') ?: 8000);
    passthru('exec ' . escapeshellarg(PHP_BINARY) . " -S 127.0.0.1:$port " . escapeshellarg(__FILE__), $status);
    exit($status);
}

$body = file_get_contents('php://input', false, null, 0, (1 << 20) + 1);
if ($body === false || strlen($body) > 1 << 20) {
    answer(400, 'the body cannot be read');
}
try {
    verify($key, $_SERVER, $body, time());
} catch (RuntimeException $err) {
    answer(401, $err->getMessage());
}
$event = json_decode($body, true);
if (!is_array($event)) {
    answer(400, 'the body is not JSON');
}
// Here: store the event under its id, ignore an id that is stored already, work on it later.
error_log("{$event['id']} {$event['type']}");
answer(204);
